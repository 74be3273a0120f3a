/*-------------------------------------------------------------------------
 *
 * remote.c
 *		Checks whether tables have rows on other servers, or receive rows from
 *		another server.
 *
 * Tracking and refreshing rely on triggers, row locks and ON CONFLICT, which
 * work on the rows of a single server.  A table is considered to have rows on
 * other servers if the table or one of its children is a foreign table, or if
 * Citus manages the table.  Tracking such a table, or refreshing a store that
 * has such tables, is refused before any request is sent; docs/scaling.md
 * describes what to do instead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "compat.h"
#include "store/store.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * Citus has a catalog with one row for each of its tables.  It creates the
 * catalog in pg_catalog, where only a superuser could create another relation
 * of that name (see src/backend/distributed/sql/citus--8.0-1.sql of Citus).
 * Shards are not listed in the catalog: to PostgreSQL, they are ordinary
 * tables.
 */
#define CITUS_CATALOG "pg_dist_partition"
#define CITUS_CATALOG_TABLE "logicalrelid"

/*
 * Does Citus manage this table, as a distributed table, a reference table or a
 * local table?
 */
static bool
is_distributed(Oid table)
{
	Oid			citus = get_relname_relid(CITUS_CATALOG, PG_CATALOG_NAMESPACE);
	AttrNumber	column = InvalidAttrNumber;
	Relation	catalog;
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	if (OidIsValid(citus) && get_rel_relkind(citus) == RELKIND_RELATION)
		column = get_attnum(citus, CITUS_CATALOG_TABLE);
	if (column == InvalidAttrNumber)
		return false;

	catalog = table_open(citus, AccessShareLock);
	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(table));
	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

/*
 * Return a foreign table that is a partition or an inheritance child of a
 * table, or InvalidOid if there is none.
 */
static Oid
find_foreign_part(Relation table)
{
	ListCell   *cell;

	if (!table->rd_rel->relhassubclass)
		return InvalidOid;
	foreach(cell, find_all_inheritors(RelationGetRelid(table), AccessShareLock,
									  NULL))
	{
		if (get_rel_relkind(lfirst_oid(cell)) == RELKIND_FOREIGN_TABLE)
			return lfirst_oid(cell);
	}
	return InvalidOid;
}

/*
 * If a table has rows on other servers, return the reason as a translated
 * sentence, allocated in the current memory context.  Otherwise return NULL.
 */
char *
hrflow_remote_reason(Relation table)
{
	Oid			part;

	if (table->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		return pstrdup(_("The table is a foreign table."));
	if (is_distributed(RelationGetRelid(table)))
		return pstrdup(_("The table is managed by Citus."));
	part = find_foreign_part(table);
	if (OidIsValid(part))
		return psprintf(_("Child table \"%s\" is a foreign table."),
						get_rel_name(part));
	return NULL;
}

/*
 * Check that a table has no rows on other servers.
 *
 * Throws 0A000.
 */
void
hrflow_remote_check_table(Relation table)
{
	const char *reason = hrflow_remote_reason(table);

	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" has rows on other servers",
						RelationGetRelationName(table)),
				 errdetail_internal("%s", reason),
				 errhint("On each server that has rows of the table, create a store that is fed by that server's tables.  See docs/scaling.md.")));
}

/*
 * Check that the tables of a store have no rows on other servers.
 *
 * Throws 0A000.
 */
void
hrflow_remote_check(const HrflowStore *store)
{
	hrflow_remote_check_table(store->vectors);
	hrflow_remote_check_table(store->profiles);
}

/*
 * Does an enabled logical replication subscription write directly to a table,
 * rather than to its partitions?
 */
static bool
is_subscribed(Relation catalog, Oid table)
{
	bool		found = false;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_subscription_rel_srrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(table));
	scan = systable_beginscan(catalog, SubscriptionRelSrrelidSrsubidIndexId,
							  true, NULL, 1, &key);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			id = ((Form_pg_subscription_rel) GETSTRUCT(tuple))->srsubid;
		HeapTuple	subscription = SearchSysCache1(SUBSCRIPTIONOID,
												   ObjectIdGetDatum(id));

		if (!HeapTupleIsValid(subscription))
			continue;
		found = ((Form_pg_subscription) GETSTRUCT(subscription))->subenabled;
		ReleaseSysCache(subscription);
	}
	systable_endscan(scan);
	return found;
}

/*
 * Does an enabled logical replication subscription write to a table?  The
 * publisher sends changes of a partition as changes of the partition itself,
 * or with publish_via_partition_root as changes of a partitioned table above
 * it.  Therefore, a subscription may list a partition or child of the table,
 * or a partitioned table to which it belongs.
 */
static bool
receives_rows(Relation table)
{
	Oid			id = RelationGetRelid(table);
	Relation	catalog = table_open(SubscriptionRelRelationId, AccessShareLock);
	List	   *tables = find_all_inheritors(id, NoLock, NULL);
	bool		found = false;
	ListCell   *cell;

	if (table->rd_rel->relispartition)
		tables = list_concat(tables, get_partition_ancestors(id));
	foreach(cell, tables)
	{
		found = is_subscribed(catalog, lfirst_oid(cell));
		if (found)
			break;
	}
	list_free(tables);
	table_close(catalog, AccessShareLock);
	return found;
}

/*
 * Check that no enabled subscription writes to the tables of a store; see
 * receives_rows().  If one did, rows that a refresh writes could conflict with
 * replicated rows, and vectors could be paid for on both servers.
 *
 * Throws 25006, as on a standby.
 */
void
hrflow_remote_check_subscription(const HrflowStore *store)
{
	if (receives_rows(store->vectors) || receives_rows(store->profiles))
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("store %s cannot be refreshed on a subscriber",
						store->vectors_name),
				 errdetail("Logical replication writes to the tables of the store."),
				 errhint("Refresh the store on the publisher, or disable the subscription before you refresh the store here.  See docs/scaling.md.")));
}
