/*-------------------------------------------------------------------------
 *
 * key.c
 *		Reads the API key from its file, and checks keys.
 *
 * No message may contain a key or anything else read from its file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"
#include "storage/fd.h"

/*
 * Check whether a string may be sent as an API key or an e-mail address, in
 * the value of an HTTP header.  Returns NULL if so, else a sentence that
 * describes the problem, to be translated by the caller.
 */
const char *
hrflow_key_problem(const char *value)
{
	if (strlen(value) > HRFLOW_MAX_KEY)
		return gettext_noop("The value is too long.");
	for (const char *p = value; *p; p++)
	{
		if (*p <= ' ' || *p > '~')
			return gettext_noop("The value contains a space, a control character or a non-ASCII character.");
	}
	return NULL;
}

static void
raise_no_key(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("no HrFlow API key in file specified by \"%s\"",
					"hrflow_embed.api_key_file"),
			 errdetail_internal("%s", _(detail))));
}

/*
 * The key file that was last read: its path and status at that time, and the
 * key in it.
 */
static struct
{
	bool		is_known;		/* are the other fields valid? */
	char		path[MAXPGPATH];
	dev_t		device;
	ino_t		inode;
	off_t		size;
	time_t		mtime;
	time_t		ctime;
	bool		is_settled;		/* would any later change to the file alter
								 * ctime? */
	char		key[HRFLOW_MAX_KEY + 4];	/* valid in a header */
}			key_file;

/*
 * Is this certainly the file that was read last, unchanged since then?
 */
static bool
is_same_key_file(const char *path, const struct stat *st)
{
	return key_file.is_known && key_file.is_settled &&
		strcmp(key_file.path, path) == 0 &&
		key_file.device == st->st_dev && key_file.inode == st->st_ino &&
		key_file.size == st->st_size && key_file.mtime == st->st_mtime &&
		key_file.ctime == st->st_ctime;
}

/*
 * Check the key in a key file.  Besides what hrflow_key_problem() detects,
 * detect common mistakes, such as quotes around the key.  Returns NULL if
 * there is no problem, else a sentence that describes it, to be translated by
 * the caller.
 */
static const char *
bad_key_file(const char *key)
{
	size_t		name = strspn(key, "abcdefghijklmnopqrstuvwxyz"
							  "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");

	if (*key == '\'' || *key == '"')
		return gettext_noop("The key is in quotes; the file must contain the key alone.");
	if (name > 0 && key[name] == '=' && key[name + 1] != '=' &&
		key[name + 1] != '\0')
		return gettext_noop("The key follows a name and \"=\"; the file must contain the key alone.");
	return hrflow_key_problem(key);
}

/*
 * Warn if the file has world access, but only once in a session until the file
 * changes.
 */
static void
warn_if_file_is_readable(const struct stat *st)
{
	static time_t warned_of = 0;	/* st_ctime of the file at the last
									 * warning */

	if ((st->st_mode & S_IRWXO) == 0 || st->st_ctime == warned_of)
		return;
	warned_of = st->st_ctime;
	ereport(WARNING,
			(errmsg("file specified by \"%s\" has world access",
					"hrflow_embed.api_key_file"),
			 errdetail("The file must not be accessible to other operating system users."),
			 errhint("Set the permissions of the file to u=rw (0600).")));
}

/*
 * Read a key file into key_file.
 *
 * Open the file in nonblocking mode, because opening a FIFO could otherwise
 * block the backend uninterruptibly.
 */
static void
read_key_file(const char *path)
{
	time_t		now = time(NULL);
	char	   *key = key_file.key;
	const char *why;
	struct stat st;
	int			length;
	int			fd;

	key_file.is_known = false;
	fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not open file specified by \"%s\": %m",
						"hrflow_embed.api_key_file"),
				 errhint("Check that the file exists, and that the operating system user of the database server can read it.")));
	if (fstat(fd, &st) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not stat file specified by \"%s\": %m",
						"hrflow_embed.api_key_file")));
	if (!S_ISREG(st.st_mode))
		raise_no_key(gettext_noop("The path does not name a regular file."));

	/* Allow for a line ending, plus one byte to detect a longer file. */
	length = read(fd, key, HRFLOW_MAX_KEY + 3);
	if (length < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not read file specified by \"%s\": %m",
						"hrflow_embed.api_key_file")));
	CloseTransientFile(fd);

	if (length > HRFLOW_MAX_KEY + 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid HrFlow API key in file specified by \"%s\"",
						"hrflow_embed.api_key_file"),
				 errdetail("The file is longer than %d bytes.",
						   HRFLOW_MAX_KEY)));

	if (length > 0 && key[length - 1] == '\n')
		length--;
	if (length > 0 && key[length - 1] == '\r')
		length--;
	key[length] = '\0';

	if (length == 0)
		raise_no_key(gettext_noop("The file is empty."));
	why = strlen(key) != length ?
		gettext_noop("The key contains a NUL character.") : bad_key_file(key);
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid HrFlow API key in file specified by \"%s\"",
						"hrflow_embed.api_key_file"),
				 errdetail_internal("%s", _(why))));

	strlcpy(key_file.path, path, sizeof(key_file.path));
	key_file.device = st.st_dev;
	key_file.inode = st.st_ino;
	key_file.size = st.st_size;
	key_file.mtime = st.st_mtime;
	key_file.ctime = st.st_ctime;

	/*
	 * File times may have a resolution of one or two seconds, so a file that
	 * was changed in the last two seconds could change again without altering
	 * its times.
	 */
	key_file.is_settled = now - st.st_ctime > 2;
	key_file.is_known = true;
	warn_if_file_is_readable(&st);
}

/*
 * Return the API key that a file contains; the string is valid until the next
 * call.  Raises 55000 if the file cannot be read or contains no key, and 22023
 * if the key is invalid.
 *
 * Each call checks whether the file has changed, so that a rotated key takes
 * effect at once, but reads the file only if it has changed, or may have.
 */
const char *
hrflow_key_read(const char *path)
{
	struct stat st;

	if (stat(path, &st) != 0 || !is_same_key_file(path, &st))
		read_key_file(path);
	return key_file.key;
}
