/* Clears the table for the next instruction set. */
#undef ISA
#undef TARGET
#undef LANES
#undef ROWS
#undef LARGER
#undef ANY_NAN
#undef HAS_BFLOAT16
#undef HAS_INT8
#undef WIDTH
#undef TOKENS
#undef FLOATS
#undef INTS
#undef FLOATS_AT
#undef INTS_AT
#undef CHUNK
#undef TILE_START
