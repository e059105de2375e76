"""Rows of embedding tables, read and written wherever training keeps them."""
