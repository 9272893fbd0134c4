"""Access to private parts of other libraries, with one module for each library."""
