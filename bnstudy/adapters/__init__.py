"""What is used of other libraries' private parts, one file a library."""
