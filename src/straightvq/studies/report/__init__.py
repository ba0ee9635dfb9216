"""What a study writes for readers: tables, pictures and the page that shows them."""
