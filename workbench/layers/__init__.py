"""Parts of a layer: attention, rotary embedding, key/value cache, matrix products, tensor parallelism."""
