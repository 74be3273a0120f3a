/* placeholder while the decoder is written: replace this file */
#include "postgres.h"
#include "hrflow_embed.h"
ArrayType *hrflow_vector_decode(const char *p, size_t n, char **detail) { *detail = "not written yet"; return NULL; }
