/*
 * Preloaded together with AddressSanitizer, to initialize it before anything
 * else.
 *
 * AddressSanitizer is initialized by the first malloc(), which in a PostgreSQL
 * server is made by the constructor of libgpg-error, in bindtextdomain(),
 * while glibc's lock of translations is held for writing.  AddressSanitizer
 * looks up functions that glibc does not have; glibc then translates its error
 * message, for which the same thread acquires and releases the lock once more.
 * The next thread to acquire it waits forever.  As this is linked with -z
 * initfirst, its constructor is called before that one.
 */
#include <stdlib.h>

__attribute__((constructor))
static void
begin_early(void)
{
	void	   *volatile something = malloc(1);

	free(something);
}
