"""The slots of a quantizer: for each one its base class, and the parts that fit it."""
