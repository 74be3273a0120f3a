/*
 * Preloaded beside AddressSanitizer: has it begin before anything else.
 *
 * It begins at the first malloc(), which in PostgreSQL's server is that of
 * libgpg-error's constructor, in bindtextdomain(), with glibc's lock of
 * translations held for writing.  AddressSanitizer looks up functions that
 * glibc does not have; glibc then translates its message, and the same thread
 * takes, and gives back, the lock once more.  The next to want it waits for
 * ever.  Linked with -z initfirst, this constructor comes before that one.
 */
#include <stdlib.h>

__attribute__((constructor))
static void
begin_early(void)
{
	void	   *volatile something = malloc(1);

	free(something);
}
