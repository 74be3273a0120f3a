/*-------------------------------------------------------------------------
 *
 * kind.c
 *		Defines the kinds of stores, and the differences between them.
 *
 * Except to choose a message, other files of this layer do not test the kind
 * of a store, but use the properties in its HrflowKind.  The kind of a store
 * is not recorded anywhere: hrflow_kind_of() determines it from the columns of
 * the store.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "nodes/primnodes.h"
#include "rewrite/rewriteHandler.h"
#include "store/store.h"
#include "utils/builtins.h"

/*
 * ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

static char *
make_wanted_profile_url(const HrflowSettings *settings,
						const HrflowWanted *wanted)
{
	HrflowQuery query = {
		.source_id = wanted->source_id,
		.profile_id = wanted->identifiers[0],
		.profile_reference = wanted->identifiers[1],
		.profile_email = wanted->identifiers[2],
		.fields = wanted->fields_text
	};

	return hrflow_request_profile(settings->base_url, settings->dialect,
								  &query);
}

static char *
make_wanted_job_url(const HrflowSettings *settings, const HrflowWanted *wanted)
{
	HrflowJobQuery query = {
		.board_id = *wanted->source_id == '\0' ? NULL : wanted->source_id,
		.job_id = wanted->identifiers[0],
		.job_reference = wanted->identifiers[1]
	};

	return hrflow_request_job(settings->base_url, settings->dialect, &query);
}

/*
 * ------------------------------------------------------------------------
 * Content
 * ------------------------------------------------------------------------
 */

/*
 * A text consists of the columns that are not null, separated by blank lines.
 * Each column, and then the text, is truncated to one character more than the
 * maximum number of bytes, so that a text that is too long can still be
 * refused.  Without truncation, long columns could together exceed the maximum
 * size of a value, and the error would end the run.
 */
static const char text_column_sql[] =
"left(f.%q::text, 1048577) COLLATE \"C\"";
static const char text_value_sql[] =
"left(array_to_string(ARRAY[%s], E'\\n\\n'), 1048577)";
static const char text_present_sql[] =
"btrim(c.value, E' \\t\\n\\x0b\\f\\r') <> ''";
static const char text_sendable_sql[] = "octet_length(c.value) <= 1048576";

static const char document_column_sql[] = "f.%q::jsonb";
static const char document_value_sql[] = "%s";
static const char document_present_sql[] =
"c.value <> 'null' AND c.value <> '{}'";
static const char document_sendable_sql[] =
"jsonb_typeof(c.value) = 'object'";

static const Oid text_types[] = {TEXTOID, VARCHAROID, BPCHAROID, NAMEOID};
static const Oid document_types[] = {JSONBOID};

static char *
make_body_of_text(const char *item_type, Datum value, char **problem)
{
	return hrflow_make_text_body(value, problem);
}

static char *
make_body_of_document(const char *item_type, Datum value, char **problem)
{
	return hrflow_make_document_body(item_type, value, false, problem);
}

static const HrflowReading text_reading = {
	.max_columns = MaxTupleAttributeNumber,
	.types = text_types,
	.ntypes = lengthof(text_types),
	.types_hint = gettext_noop("Use columns of type text, varchar, char or name."),
	.column_sql = text_column_sql,
	.value_sql = text_value_sql,
	.present_sql = text_present_sql,
	.sendable_sql = text_sendable_sql,
	.make_body = make_body_of_text
};

static const HrflowReading document_reading = {
	.max_columns = 1,
	.takes_item_type = true,
	.types = document_types,
	.ntypes = lengthof(document_types),
	.types_hint = gettext_noop("Use a column of type jsonb."),
	.column_sql = document_column_sql,
	.value_sql = document_value_sql,
	.present_sql = document_present_sql,
	.sendable_sql = document_sendable_sql,
	.make_body = make_body_of_document
};

/*
 * ------------------------------------------------------------------------
 * Kinds
 * ------------------------------------------------------------------------
 */

/* Kinds of stores.  The first one is the default. */
static const HrflowKind kinds[] = {
	{
		.content = "profile",
		.plural = "profiles",
		.identifiers = {"profile_id", "profile_reference", "profile_email"},
		.needs_source = true,
		.has_sections = true,
		.whole = "profile",
		.asked = {
			.endpoint = HRFLOW_PROFILE,
			.make_url = make_wanted_profile_url
		}
	},
	{
		.content = "job",
		.plural = "jobs",
		.identifiers = {"job_id", "job_reference"},
		.whole = "job",
		.asked = {
			.endpoint = HRFLOW_JOB,
			.make_url = make_wanted_job_url
		}
	},
	{
		.content = "text",
		.plural = "texts",
		.identifiers = {"key"},
		.has_no_source = true,
		.whole = "text",
		.asked = {.endpoint = HRFLOW_TEXT},
		.reading = &text_reading
	},
	{
		.content = "document",
		.plural = "documents",
		.identifiers = {"key"},
		.has_no_source = true,
		.whole = "document",
		.asked = {.endpoint = HRFLOW_DOCUMENT},
		.reading = &document_reading
	}
};

/*
 * Return the kind that the argument "content" names.  Throws 22023 if there
 * is no such kind.
 */
const HrflowKind *
hrflow_kind_find(const char *content)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(content, kinds[i].content) == 0)
			return &kinds[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"content\": \"%s\"", content),
			 errhint("Available values: \"profile\", \"job\", \"text\", \"document\".")));
}

/*
 * Return the name of an identifier without the prefix for the kind, such as
 * "id" for "job_id".
 */
const char *
hrflow_kind_bare_name(const HrflowKind *kind, const char *identifier)
{
	int			length = strlen(kind->content);

	return strncmp(identifier, kind->content, length) == 0 &&
		identifier[length] == '_' ? identifier + length + 1 : identifier;
}

/*
 * Return the index of an identifier of a kind, given its name without the
 * prefix for the kind.  NULL means the first identifier.  Throws 22023 if
 * there is no such identifier.
 */
int
hrflow_kind_identifier(const HrflowKind *kind, const char *name)
{
	int			n = 0;
	StringInfoData names;

	if (name == NULL)
		return 0;

	while (n < HRFLOW_NIDENTIFIERS && kind->identifiers[n] != NULL)
		n++;
	initStringInfo(&names);
	for (int i = 0; i < n; i++)
	{
		const char *known = hrflow_kind_bare_name(kind, kind->identifiers[i]);

		if (strcmp(name, known) == 0)
			return i;
		appendStringInfo(&names, "%s\"%s\"", i == 0 ? "" : ", ", known);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"identifier\": \"%s\"", name),
			 errhint("Available values: %s.", names.data)));
}

/*
 * Is the default of the column "section" the section for the complete content,
 * as in stores of this kind?
 */
static bool
has_default_section(Relation vectors, const HrflowKind *kind)
{
	int			number = SPI_fnumber(RelationGetDescr(vectors), "section");
	Node	   *value = number <= 0 ||
	!TupleDescAttr(RelationGetDescr(vectors), number - 1)->atthasdef ? NULL :
	build_column_default(vectors, number);

	return value != NULL && IsA(value, Const) &&
		((Const *) value)->consttype == TEXTOID &&
		!((Const *) value)->constisnull &&
		strcmp(TextDatumGetCString(((Const *) value)->constvalue),
			   kind->whole) == 0;
}

/*
 * Return the kind of a store, and set *identifier to the index of its
 * identifier.  Both are determined by the first column of the table of vectors
 * that is named like an identifier; columns that users add come later.  For
 * the column "key", which texts and documents have, the default of the column
 * "section" must also be that of the kind.  If there is no such column, return
 * the default kind and its last identifier; the caller then reports the
 * missing column.
 */
const HrflowKind *
hrflow_kind_of(Relation vectors, int *identifier)
{
	const HrflowKind *kind = &kinds[0];
	int			first = PG_INT32_MAX;

	*identifier = HRFLOW_NIDENTIFIERS - 1;
	for (int i = 0; i < lengthof(kinds); i++)
	{
		for (int j = 0; j < HRFLOW_NIDENTIFIERS; j++)
		{
			const char *column = kinds[i].identifiers[j];
			int			number = column == NULL ? 0 :
			SPI_fnumber(RelationGetDescr(vectors), column);

			if (number > 0 && number < first &&
				(kinds[i].reading == NULL ||
				 has_default_section(vectors, &kinds[i])))
			{
				first = number;
				*identifier = j;
				kind = &kinds[i];
			}
		}
	}
	return kind;
}

/*
 * ------------------------------------------------------------------------
 * Sections
 * ------------------------------------------------------------------------
 */

/*
 * Return the section to which a name refers.  "profile", the default in SQL
 * functions, refers to the complete content in stores of any kind.
 */
char *
hrflow_kind_section(const HrflowKind *kind, char *name)
{
	return strcmp(name, kinds[0].whole) == 0 ?
		unconstify(char *, kind->whole) : name;
}

/*
 * Check "fields", which is an object or NULL.  Warns about sections that the
 * API is not known to have.  Throws 22023 if the store has no sections and
 * "fields" names any section other than the complete content.
 */
void
hrflow_kind_check_fields(const HrflowKind *kind, Jsonb *fields)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (kind->has_sections || fields == NULL)
	{
		hrflow_section_check_fields(fields);
		return;
	}
	iterator = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		char	   *name;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(value.val.string.val, value.val.string.len);
		if (strcmp(hrflow_kind_section(kind, name), kind->whole) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid section \"%s\" in argument \"fields\"",
							name),
					 errdetail("Only stores of profiles have more than one section."),
					 errhint("Omit \"fields\".")));
	}
}
