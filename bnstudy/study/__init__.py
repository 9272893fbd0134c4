"""From many records to tables: reads what lies on disk, knows nothing of torch."""
