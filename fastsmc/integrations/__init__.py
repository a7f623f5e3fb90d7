"""Other libraries, sped up: one module each, imported only by those who have the library."""
