/*-------------------------------------------------------------------------
 *
 * saved.c
 *		Keeps the request counts in a file across restarts.
 *
 * The postmaster writes the file when it shuts down, fails to start, or
 * restarts all processes after a backend crash.  It reads and removes the file
 * when it initializes shared memory.  This requires the library to be in
 * shared_preload_libraries.  If the postmaster or the machine crashes, there
 * is no file, and all counts start from zero.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "base/shared.h"
#include "pgstat.h"
#include "storage/fd.h"

#define SAVED_FILE PGSTAT_STAT_PERMANENT_DIRECTORY "/hrflow_embed.stat"

/*
 * Identifies the file format.  Must be changed whenever one of the structs
 * below, HRFLOW_NDAYS or a number in HrflowCaller changes.
 */
#define SAVED_MAGIC 0x48524603

typedef struct SavedHeader
{
	uint32		magic;
	int32		nusage;			/* number of SavedUsage structs between the
								 * header and the HRFLOW_NDAYS SavedDay
								 * structs */
} SavedHeader;

typedef struct SavedUsage
{
	DateADT		day;
	Oid			role;
	int32		caller;
	uint64		requests[2];
} SavedUsage;

typedef struct SavedDay
{
	uint64		account;
	uint64		sent;
} SavedDay;

/*
 * Read the file into shared memory.  Returns false if the file is not valid,
 * perhaps after some counts have been stored.
 */
static bool
read_saved(FILE *file, HrflowShared *shared)
{
	SavedHeader header;

	if (fread(&header, sizeof(header), 1, file) != 1 ||
		header.magic != SAVED_MAGIC ||
		header.nusage < 0 || header.nusage > HRFLOW_NUSAGE)
		return false;
	for (int i = 0; i < header.nusage; i++)
	{
		SavedUsage	saved;
		HrflowUsageEntry *entry = &shared->usage.entries[i];

		if (fread(&saved, sizeof(saved), 1, file) != 1 ||
			saved.caller < 0 || saved.caller >= HRFLOW_NCALLERS)
			return false;
		entry->day = saved.day;
		entry->role = saved.role;
		entry->caller = saved.caller;
		for (int j = 0; j < 2; j++)
			pg_atomic_write_u64(&entry->requests[j], saved.requests[j]);
		shared->usage.nentries = i + 1;
	}
	for (int i = 0; i < HRFLOW_NDAYS; i++)
	{
		SavedDay	saved;

		if (fread(&saved, sizeof(saved), 1, file) != 1)
			return false;
		pg_atomic_write_u64(&shared->days[i].account, saved.account);
		pg_atomic_write_u64(&shared->days[i].sent, saved.sent);
	}
	return true;
}

/*
 * Load the saved counts, if there are any.  Called by the postmaster before
 * any other process uses shared memory.
 */
void
hrflow_saved_load(HrflowShared *shared)
{
	FILE	   *file = AllocateFile(SAVED_FILE, PG_BINARY_R);
	bool		ok;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not open file \"%s\": %m", SAVED_FILE)));
		return;
	}
	ok = read_saved(file, shared);
	FreeFile(file);
	if (!ok)
	{
		shared->usage.nentries = 0;
		for (int i = 0; i < HRFLOW_NDAYS; i++)
		{
			pg_atomic_write_u64(&shared->days[i].account, 0);
			pg_atomic_write_u64(&shared->days[i].sent, 0);
		}
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring invalid data in file \"%s\"", SAVED_FILE)));
	}

	/*
	 * The file is out of date from now on, and must not get into a base
	 * backup.
	 */
	unlink(SAVED_FILE);
}

static bool
write_saved(FILE *file, HrflowShared *shared)
{
	SavedHeader header = {SAVED_MAGIC, shared->usage.nentries};

	/* A crashed backend may have corrupted this number. */
	if (header.nusage < 0 || header.nusage > HRFLOW_NUSAGE)
		header.nusage = 0;
	if (fwrite(&header, sizeof(header), 1, file) != 1)
		return false;
	for (int i = 0; i < header.nusage; i++)
	{
		HrflowUsageEntry *entry = &shared->usage.entries[i];
		SavedUsage	saved;

		memset(&saved, 0, sizeof(saved));
		saved.day = entry->day;
		saved.role = entry->role;
		saved.caller = entry->caller;
		for (int j = 0; j < 2; j++)
			saved.requests[j] = pg_atomic_read_u64(&entry->requests[j]);
		if (fwrite(&saved, sizeof(saved), 1, file) != 1)
			return false;
	}
	for (int i = 0; i < HRFLOW_NDAYS; i++)
	{
		SavedDay	saved;

		saved.account = pg_atomic_read_u64(&shared->days[i].account);
		saved.sent = pg_atomic_read_u64(&shared->days[i].sent);
		if (fwrite(&saved, sizeof(saved), 1, file) != 1)
			return false;
	}
	return true;
}

/*
 * Save the counts.  Called by the postmaster after all other processes have
 * detached from shared memory.
 */
void
hrflow_saved_save(HrflowShared *shared)
{
	FILE	   *file = AllocateFile(SAVED_FILE ".tmp", PG_BINARY_W);

	if (file != NULL && !write_saved(file, shared))
	{
		int			save_errno = errno;

		FreeFile(file);
		file = NULL;
		errno = save_errno;
	}
	if (file == NULL || FreeFile(file) != 0)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m",
						SAVED_FILE ".tmp")));
		unlink(SAVED_FILE ".tmp");
		return;
	}
	(void) durable_rename(SAVED_FILE ".tmp", SAVED_FILE, LOG);
}
