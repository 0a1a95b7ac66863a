"""What a layer is made of: attention, rotary embedding, key/value cache, products, tensor parallelism."""
