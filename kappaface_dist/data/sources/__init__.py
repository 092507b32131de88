"""Where images lie: records, folders, archives, tables, and the catalog of several of them."""
