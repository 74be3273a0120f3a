/*-------------------------------------------------------------------------
 *
 * owner.c
 *		Decides which tables may be read on behalf of a store's owner.
 *
 * Reading a table may execute code that the table's owner has attached to it,
 * such as policies, types and casts.  The same holds for its partitions and
 * inheritance children: the planner evaluates immutable functions in their
 * constraints and indexes as the current user.  So the table must belong to
 * the owner of the store, and each partition or child to a role that has the
 * privileges of the owner.  Superusers and members of the owner's role have
 * them, too, and jobs that create partitions often run as such a role.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "store/store.h"
#include "utils/acl.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * Hash key of a cached result of hrflow_owner_stranger().
 */
typedef struct TreeKey
{
	Oid			table;
	Oid			owner;
} TreeKey;

typedef struct Tree
{
	TreeKey		key;
	Oid			stranger;		/* the result */
} Tree;

/*
 * Cached results of hrflow_owner_stranger(), or NULL.  They are valid as long
 * as no relation, role or membership changes.  Creating, attaching and
 * detaching a partition, and changing its owner, cause a relation cache
 * invalidation, because they update the row of the partition in pg_class.
 */
static HTAB *trees = NULL;

/* Number of invalidations when "trees" was created, and now. */
static uint64 nvalid = 0;
static uint64 nchanges = 0;

static void
forget_relation(Datum arg, Oid relation)
{
	nchanges++;
}

static void
forget_role(Datum arg, int cache, uint32 hash)
{
	nchanges++;
}

/*
 * Get the owner of a relation, and whether the relation may have partitions or
 * inheritance children.  Returns false if the relation does not exist.
 */
static bool
read_class(Oid relation, Oid *owner, bool *has_children)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	Form_pg_class form;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_class) GETSTRUCT(tuple);
	*owner = form->relowner;
	*has_children = form->relhassubclass;
	ReleaseSysCache(tuple);
	return true;
}

/*
 * Create "trees", or replace it by an empty table if it is no longer valid.
 */
static void
prepare_trees(void)
{
	static bool is_registered = false;
	HASHCTL		control = {.keysize = sizeof(TreeKey),
	.entrysize = sizeof(Tree)};

	if (!is_registered)
	{
		CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHOID, forget_role, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, forget_role, (Datum) 0);
		is_registered = true;
	}
	if (trees != NULL && nvalid == nchanges)
		return;
	if (trees != NULL)
		hash_destroy(trees);
	trees = NULL;
	trees = hash_create("hrflow_embed owners", 8, &control,
						HASH_ELEM | HASH_BLOBS);
	nvalid = nchanges;
}

/*
 * Return a partition or inheritance child of a table, at any level, whose
 * owner does not have the privileges of "owner".  Returns InvalidOid if there
 * is none.
 */
Oid
hrflow_owner_stranger(Oid table, Oid owner)
{
	TreeKey		key = {table, owner};
	Tree	   *tree;
	Oid			stranger = InvalidOid;
	Oid			other;
	bool		has_children;
	uint64		before;
	ListCell   *cell;

	if (!read_class(table, &other, &has_children) || !has_children)
		return InvalidOid;
	prepare_trees();
	tree = hash_search(trees, &key, HASH_FIND, NULL);
	if (tree != NULL)
		return tree->stranger;

	before = nchanges;
	foreach(cell, find_all_inheritors(table, NoLock, NULL))
	{
		if (lfirst_oid(cell) != table &&
			read_class(lfirst_oid(cell), &other, &has_children) &&
			!has_privs_of_role(other, owner))
		{
			stranger = lfirst_oid(cell);
			break;
		}
	}

	/* Do not cache a result that may be outdated already. */
	if (nchanges == before)
	{
		tree = hash_search(trees, &key, HASH_ENTER, NULL);
		tree->stranger = stranger;
	}
	return stranger;
}

/*
 * Lock a table, if it exists, together with its partitions and inheritance
 * children, whose owners then cannot change.
 */
void
hrflow_owner_lock(Oid table, LOCKMODE lockmode)
{
	Oid			owner;
	bool		has_children;

	LockRelationOid(table, lockmode);
	if (read_class(table, &owner, &has_children) && has_children)
		(void) find_all_inheritors(table, lockmode, NULL);
}

/*
 * Can this table feed a store?  Its partitions and children are not checked.
 * It must be an ordinary or partitioned table, and belong to the store's
 * owner.  A temporary table can feed only a temporary store, because other
 * sessions cannot read it.
 */
bool
hrflow_owner_may_feed(const HrflowStore *store, Oid table)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Form_pg_class form;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_class) GETSTRUCT(tuple);
	result = (form->relkind == RELKIND_RELATION ||
			  form->relkind == RELKIND_PARTITIONED_TABLE) &&
		form->relowner == store->owner &&
		(form->relpersistence != RELPERSISTENCE_TEMP ||
		 RelationUsesLocalBuffers(store->vectors));
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Check that a table, if it exists, belongs to the store's owner.  Throws
 * 42501.
 */
void
hrflow_owner_check(const HrflowStore *store, Oid table)
{
	Oid			owner;
	bool		has_children;

	if (read_class(table, &owner, &has_children) && owner != store->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" and store %s do not have the same owner",
						get_rel_name(table), store->vectors_name)));
}

/*
 * Check that a table, if it exists, may be read on behalf of the store's
 * owner.  Throws 42501.
 */
void
hrflow_owner_check_all(const HrflowStore *store, Oid table)
{
	Oid			stranger;

	hrflow_owner_check(store, table);
	stranger = hrflow_owner_stranger(table, store->owner);
	if (OidIsValid(stranger))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" and store %s do not have the same owner",
						get_rel_name(stranger), store->vectors_name),
				 errdetail("The table is a partition or inheritance child of table \"%s\".",
						   get_rel_name(table)),
				 errhint("Change the owner of table \"%s\" to the owner of the store.",
						 get_rel_name(stranger))));
}
