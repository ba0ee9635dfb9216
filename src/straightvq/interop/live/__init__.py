"""Our quantizers behind the interfaces of other libraries' classes."""
