"""Reports, tables and pictures of what was rebuilt and measured."""
