"""What was found, for people: records, charts, tables, pages; nothing here computes a figure."""
