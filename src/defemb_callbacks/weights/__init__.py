"""Read and write rows of embedding tables: tied, adapted, wrapped or sharded."""
