"""One file for each library: what its entries are called, and what they become."""
