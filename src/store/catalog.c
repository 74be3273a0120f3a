/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Reads triggers, names and dependencies from the system catalogs, and
 *		opens relations.
 *
 * Triggers name their store in their arguments, which are not indexed, and
 * triggers that were restored from a dump do not depend on the store either.
 * So a session reads all triggers that call hrflow_track_trigger(), and caches
 * a hash of the store's name for each of them.  Otherwise a DELETE of a single
 * row would read the triggers of all stores.  If any relation has changed, the
 * cache is rebuilt when it is needed next, because creating, altering or
 * dropping a trigger causes a relation cache invalidation for its table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "common/hashfn.h"
#include "compat.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/*
 * A trigger that calls hrflow_track_trigger().
 */
typedef struct NamedTrigger
{
	Oid			trigger;
	uint32		name_hash;		/* hash of the store's name in the trigger's
								 * arguments */
} NamedTrigger;

/*
 * Cache of all triggers that call hrflow_track_trigger(), and that
 * hrflow_catalog_trigger_args() considers ours.  It is valid as long as no
 * relation changes.
 */
static struct
{
	Oid			function;		/* OID of hrflow_track_trigger(), or
								 * InvalidOid if the cache is invalid */
	NamedTrigger *triggers;		/* in TopMemoryContext, or NULL */
	int			n;
}			known = {.function = InvalidOid};

/*
 * Number of relation cache invalidations since this session first filled the
 * cache.
 */
static uint64 nchanges = 0;

/*
 * Throw 42P01 for a relation that does not exist.  The caller may have named
 * it by its OID, or another session may have dropped it in the meantime.
 */
void
hrflow_catalog_refuse_dropped(Oid relation)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("relation with OID %u does not exist", relation),
			 errhint("If the relation was dropped and created again, refer to it by name.")));
}

/*
 * Lock and open a relation.  Unlike relation_open(), throws 42P01 if it does
 * not exist.
 */
Relation
hrflow_catalog_open(Oid relation)
{
	Relation	opened = try_relation_open(relation, AccessShareLock);

	if (opened == NULL)
		hrflow_catalog_refuse_dropped(relation);
	return opened;
}

/*
 * Return a palloc'd copy of the row of pg_trigger for a trigger, or NULL if
 * there is no such trigger.
 */
HeapTuple
hrflow_catalog_trigger(Relation triggers, Oid trigger)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(triggers, TriggerOidIndexId, true, NULL, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

/*
 * Return rows of pg_depend as a list of Form_pg_depend, palloc'd.  For a
 * trigger, these are its dependencies on other objects; for any other object,
 * these are the dependencies of triggers on the object.
 */
List *
hrflow_catalog_dependencies(Oid class, Oid object)
{
	bool		is_trigger = class == TriggerRelationId;
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	List	   *found = NIL;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], is_trigger ? Anum_pg_depend_classid :
				Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(class));
	ScanKeyInit(&keys[1], is_trigger ? Anum_pg_depend_objid :
				Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(object));
	scan = systable_beginscan(depend, is_trigger ? DependDependerIndexId :
							  DependReferenceIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

		if (form->classid != TriggerRelationId)
			continue;
		form = palloc(sizeof(FormData_pg_depend));
		memcpy(form, GETSTRUCT(tuple), sizeof(FormData_pg_depend));
		found = lappend(found, form);
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	return found;
}

/*
 * Return the arguments of a trigger, each terminated by a zero byte.  Returns
 * NULL if the trigger is not one of ours.  Our triggers call "function" with
 * as many arguments as hrflow_track_table() passes, and are not copies on
 * partitions.
 */
char *
hrflow_catalog_trigger_args(Relation triggers, HeapTuple tuple, Oid function)
{
	Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
	bool		is_null;
	Datum		args = heap_getattr(tuple, Anum_pg_trigger_tgargs,
									RelationGetDescr(triggers), &is_null);

	if (is_null || (form->tgnargs != HRFLOW_TRIGGER_NKEYS &&
					form->tgnargs != HRFLOW_TRIGGER_NARGS) ||
		form->tgfoid != function || OidIsValid(form->tgparentid))
		return NULL;
	return VARDATA_ANY(DatumGetByteaPCopy(args));
}

static uint32
hash_name(const char *name)
{
	return hash_bytes((const unsigned char *) name, strlen(name));
}

/*
 * Relation cache callback: invalidate the cache of triggers, because triggers
 * on the relation may have changed.
 */
static void
forget_triggers(Datum arg, Oid relation)
{
	known.function = InvalidOid;
	nchanges++;
}

/*
 * Fill the cache with the triggers that call "function".
 */
static void
read_triggers(Oid function)
{
	static bool is_registered = false;
	uint64		before = nchanges;
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	List	   *dependencies;
	NamedTrigger *named;
	int			n = 0;
	ListCell   *cell;

	if (!is_registered)
	{
		CacheRegisterRelcacheCallback(forget_triggers, (Datum) 0);
		is_registered = true;
	}
	dependencies = hrflow_catalog_dependencies(ProcedureRelationId, function);
	named = palloc(sizeof(NamedTrigger) * Max(list_length(dependencies), 1));
	foreach(cell, dependencies)
	{
		Oid			trigger = ((Form_pg_depend) lfirst(cell))->objid;
		HeapTuple	tuple = hrflow_catalog_trigger(triggers, trigger);
		char	   *args = HeapTupleIsValid(tuple) ?
		hrflow_catalog_trigger_args(triggers, tuple, function) : NULL;

		if (args == NULL)
			continue;
		named[n].trigger = trigger;
		named[n++].name_hash = hash_name(args);
	}
	table_close(triggers, AccessShareLock);

	if (known.triggers != NULL)
		pfree(known.triggers);
	known.triggers = NULL;
	known.n = 0;
	known.triggers = MemoryContextAlloc(TopMemoryContext,
										sizeof(NamedTrigger) * Max(n, 1));
	memcpy(known.triggers, named, sizeof(NamedTrigger) * n);
	known.n = n;

	/*
	 * Leave the cache invalid if a relation has changed while the cache was
	 * being filled.
	 */
	known.function = nchanges == before ? function : InvalidOid;
}

/*
 * Return the OIDs of the triggers that call "function" and may name a store.
 * Because names are compared by their hashes, and the cache may be outdated,
 * the result may include triggers of other stores, and triggers that no longer
 * exist.
 */
List *
hrflow_catalog_triggers_of(Oid function, const char *store)
{
	uint32		name_hash = hash_name(store);
	List	   *found = NIL;

	if (known.function != function)
		read_triggers(function);
	for (int i = 0; i < known.n; i++)
	{
		if (known.triggers[i].name_hash == name_hash)
			found = lappend_oid(found, known.triggers[i].trigger);
	}
	return found;
}

/*
 * Throw 42883 for a function of this extension that no longer exists: the
 * extension may be dropped while one of its functions waits for a lock.
 */
HRFLOW_NORETURN static void
refuse_dropped(Oid function)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("function with OID %u does not exist", function),
			 errdetail("The extension \"%s\" has been dropped.",
					   "hrflow_embed")));
}

/*
 * Return the name of the schema of a function of this extension.  Throws 42883
 * if the function no longer exists.
 */
char *
hrflow_catalog_schema(Oid function)
{
	char	   *schema = get_namespace_name(get_func_namespace(function));

	if (schema == NULL)
		refuse_dropped(function);
	return schema;
}

/*
 * Return the quoted and qualified name of a function of this extension.  Throws
 * 42883 if the function no longer exists.
 */
char *
hrflow_catalog_qualified_name(Oid function)
{
	char	   *schema = hrflow_catalog_schema(function);
	char	   *name = get_func_name(function);

	if (name == NULL)
		refuse_dropped(function);
	return quote_qualified_identifier(schema, name);
}

/*
 * Return the OID of the function with the given name and exactly the given
 * argument types in the schema of "other", which may be any function of this
 * extension.  Throws an internal error if there is no such function.
 *
 * A call by name alone would not be safe, because anyone who may create
 * functions in the schema could overload the name.
 */
Oid
hrflow_catalog_function(const char *name, const Oid *types, int nargs,
						Oid other)
{
	Oid			function =
	GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
					PointerGetDatum(buildoidvector(types, nargs)),
					ObjectIdGetDatum(get_func_namespace(other)));

	if (!OidIsValid(function))
		elog(ERROR, "could not find function %s", name);
	return function;
}

/*
 * Return the quoted name of a function of this extension, qualified with the
 * schema of "other", which may be any function of this extension.  Throws
 * 42883 if "other" no longer exists.
 */
char *
hrflow_catalog_function_name(const char *name, Oid other)
{
	return quote_qualified_identifier(hrflow_catalog_schema(other), name);
}
