/*-------------------------------------------------------------------------
 *
 * refused.c
 *		Finds settings whose values PostgreSQL refused when the library was
 *		loaded.
 *
 * PostgreSQL accepts any value for a setting of a library that has not been
 * loaded yet.  When the library defines the setting, PostgreSQL only warns if
 * the value is not allowed, or the role that set it may not set it, and uses
 * the default instead.  The default is not what a superuser has configured: a
 * connection option that is refused in this way has replaced the value of the
 * configuration file, which returns only when the configuration is reloaded.
 * With such an option, any role could remove a limit, or have requests sent
 * elsewhere.  Therefore, the settings cannot be used while the default of a
 * setting that only superusers may change applies for this reason.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/base.h"
#include "compat.h"
#include "nodes/pg_list.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/memutils.h"

/*
 * Names of the settings that, before they were defined, had a value from a
 * source other than SET.  If a SET is refused, this value remains.
 */
static List *given = NIL;

/*
 * The settings among these (struct config_generic) that only superusers may
 * change, and whose value was refused.
 */
static List *refused = NIL;

static bool
is_given(const char *name)
{
	ListCell   *cell;

	foreach(cell, given)
	{
		if (pg_strcasecmp(lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

/*
 * Before the settings are defined, record in "given" those that have a value
 * from a source other than SET.  May throw.
 */
void
hrflow_refused_begin(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	int			n;
	struct config_generic **settings = hrflow_compat_settings(&n);

	for (int i = 0; i < n; i++)
	{
		if ((settings[i]->flags & GUC_CUSTOM_PLACEHOLDER) != 0 &&
			settings[i]->reset_source != PGC_S_DEFAULT &&
			pg_strncasecmp(settings[i]->name, "hrflow_embed.",
						   strlen("hrflow_embed.")) == 0)
			given = lappend(given, pstrdup(settings[i]->name));
	}
	MemoryContextSwitchTo(old);
}

/*
 * After all settings have been defined, find those that only superusers may
 * change and whose values have been refused.  May throw.
 */
void
hrflow_refused_find(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	int			n;
	struct config_generic **settings = hrflow_compat_settings(&n);

	for (int i = 0; i < n; i++)
	{
		if (settings[i]->context == PGC_SUSET &&
			settings[i]->reset_source == PGC_S_DEFAULT &&
			is_given(settings[i]->name))
			refused = lappend(refused, settings[i]);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Raise 55000 if the value of a setting was refused, unless it has been set
 * since then.
 */
void
hrflow_refused_check(void)
{
	ListCell   *cell;

	foreach(cell, refused)
	{
		const struct config_generic *setting = lfirst(cell);

		if (setting->source == PGC_S_DEFAULT)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("value of parameter \"%s\" was refused when hrflow_embed was loaded",
							setting->name),
					 errdetail("The value is not allowed, or the role that set it may not set this parameter."),
					 errhint("If the parameter is among the options of the connection, remove it; otherwise ask a superuser to correct its value.")));
	}
}
