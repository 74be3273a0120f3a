/*-------------------------------------------------------------------------
 *
 * key.c
 *		The file that holds the API key, and what a key can be.
 *
 * No message shows a key, or what is in its file.
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
 * Why a string, such as a key, cannot be the value of an HTTP header, or NULL.
 */
const char *
hrflow_key_problem(const char *value)
{
	if (strlen(value) > HRFLOW_MAX_KEY)
		return "is too long";
	for (const char *p = value; *p; p++)
	{
		if (*p <= ' ' || *p > '~')
			return "has a space, a control character or one that is not ASCII";
	}
	return NULL;
}

static void
raise_no_key(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("no HrFlow API key in \"%s\"",
					"hrflow_embed.api_key_file"),
			 errdetail("%s", detail)));
}

/*
 * The key file as it was last read.
 */
static struct
{
	bool		is_known;		/* all that follows is valid */
	char		path[MAXPGPATH];
	dev_t		device;
	ino_t		inode;
	off_t		size;
	time_t		mtime;
	time_t		ctime;
	bool		is_settled;		/* a later change alters "ctime" */
	char		key[HRFLOW_MAX_KEY + 4];	/* safe in a header */
}			key_file;

/*
 * Is the file that this describes the one that was last read, unchanged?
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
 * Why what a file holds is not a key, although a header could have it; or NULL.
 * These are what people write in such files.
 */
static const char *
bad_key_file(const char *key)
{
	size_t		name = strspn(key, "abcdefghijklmnopqrstuvwxyz"
							  "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");

	if (*key == '\'' || *key == '"')
		return "is in quotes; the file must contain the key alone";
	if (name > 0 && key[name] == '=' && key[name + 1] != '=' &&
		key[name + 1] != '\0')
		return "follows a name and \"=\"; the file must contain the key alone";
	return hrflow_key_problem(key);
}

/*
 * Warn if every user of the machine can read the file, once for each state of
 * it that is seen.
 */
static void
warn_if_file_is_readable(const struct stat *st)
{
	static time_t warned_of = 0;	/* its st_ctime */

	if ((st->st_mode & S_IRWXO) == 0 || st->st_ctime == warned_of)
		return;
	warned_of = st->st_ctime;
	ereport(WARNING,
			(errmsg("the file that \"%s\" names has world access",
					"hrflow_embed.api_key_file"),
			 errdetail("Every operating system user of the database server can use the API key."),
			 errhint("Set its permissions to u=rw (0600).")));
}

/*
 * Read the key file into key_file.
 *
 * The file is opened without blocking: a FIFO would hold the backend up where
 * it cannot be cancelled.
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
	if (fd < 0 || fstat(fd, &st) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not read the file that \"%s\" names: %m",
						"hrflow_embed.api_key_file"),
				 errhint("The operating system user of the database server must be able to read it.")));
	if (!S_ISREG(st.st_mode))
		raise_no_key("What it names is not a regular file.");

	/* Room for the end of a line, and for one byte more: then it is too long. */
	length = read(fd, key, HRFLOW_MAX_KEY + 3);
	if (length < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not read the file that \"%s\" names: %m",
						"hrflow_embed.api_key_file")));
	CloseTransientFile(fd);

	if (length > HRFLOW_MAX_KEY + 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid HrFlow API key in \"%s\"",
						"hrflow_embed.api_key_file"),
				 errdetail("The file is longer than %d bytes.",
						   HRFLOW_MAX_KEY)));

	if (length > 0 && key[length - 1] == '\n')
		length--;
	if (length > 0 && key[length - 1] == '\r')
		length--;
	key[length] = '\0';

	if (length == 0)
		raise_no_key("The file is empty.");
	why = strlen(key) != length ? "has a NUL in it" : bad_key_file(key);
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid HrFlow API key in \"%s\"",
						"hrflow_embed.api_key_file"),
				 errdetail("The key %s.", why)));

	strlcpy(key_file.path, path, sizeof(key_file.path));
	key_file.device = st.st_dev;
	key_file.inode = st.st_ino;
	key_file.size = st.st_size;
	key_file.mtime = st.st_mtime;
	key_file.ctime = st.st_ctime;

	/*
	 * A change within the second of the last one would leave the times as
	 * they are, and file systems with times of two seconds exist.
	 */
	key_file.is_settled = now - st.st_ctime > 2;
	key_file.is_known = true;
	warn_if_file_is_readable(&st);
}

/*
 * The key in a file; valid until the next call.  Raises 55000 if there is none,
 * and 22023 if it cannot be one.
 *
 * Every call looks whether the file has changed, so that a rotated key is used
 * at once, and reads it only then.
 */
const char *
hrflow_key_read(const char *path)
{
	struct stat st;

	if (stat(path, &st) != 0 || !is_same_key_file(path, &st))
		read_key_file(path);
	return key_file.key;
}
