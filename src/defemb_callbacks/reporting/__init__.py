"""Reports, tables, pictures and pages of rebuilds and measurements."""
