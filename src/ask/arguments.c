/*-------------------------------------------------------------------------
 *
 * arguments.c
 *		Checks arguments that several SQL functions have in common.
 *
 * The functions that set an HrflowProblem do not raise errors about the value
 * of an argument.  They store the first such error, and the caller raises it
 * immediately or, if the arguments were read ahead, when the row of the call
 * is returned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "ask/ask.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

/*
 * Raise a problem as an error (22023).
 */
void
hrflow_argument_raise(const HrflowProblem *problem)
{
	Assert(problem->message != NULL);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg_internal("%s", problem->message),
			 problem->detail ? errdetail_internal("%s", problem->detail) : 0,
			 problem->hint ? errhint("%s", problem->hint) : 0));
}

/*
 * Read an identifier and convert it to UTF-8.  Returns NULL if the argument is
 * NULL or there is a problem.
 */
const char *
hrflow_argument_identifier(const NullableDatum *argument, const char *name,
						   HrflowProblem *problem)
{
	const char *value;

	if (argument->isnull || problem->message != NULL)
		return NULL;
	value = TextDatumGetCString(argument->value);
	if (*value == '\0')
	{
		problem->message = psprintf("argument \"%s\" must not be empty", name);
		problem->hint = "Pass NULL to omit an identifier.";
		return NULL;
	}
	value = hrflow_text_to_utf8(value);
	if (value == NULL)
		problem->message = psprintf("argument \"%s\" cannot be converted to UTF-8",
									name);
	return value;
}

/*
 * Check the argument "fields", which may be NULL.  Returns NULL if the
 * parameter is to be omitted from the request or there is a problem.
 */
static Jsonb *
check_fields(Jsonb *fields, HrflowProblem *problem)
{
	if (fields == NULL)
		return NULL;
	if (!JB_ROOT_IS_OBJECT(fields))
	{
		problem->message = "argument \"fields\" must be a JSON object";
		problem->hint = "For example: {\"profile\": 1, \"experiences\": [0, 2]}.";
		return NULL;
	}
	return JB_ROOT_COUNT(fields) == 0 ? NULL : fields;
}

/*
 * Return "fields", which may be NULL, as JSON text in UTF-8.  Returns NULL if
 * "fields" is NULL or there is a problem.
 */
static const char *
make_fields_text(Jsonb *fields, HrflowProblem *problem)
{
	const char *text;

	if (fields == NULL)
		return NULL;
	text = hrflow_text_to_utf8(JsonbToCString(NULL, &fields->root,
											  VARSIZE(fields)));
	if (text == NULL)
		problem->message = "argument \"fields\" cannot be converted to UTF-8";
	return text;
}

/*
 * Read the argument "fields", and convert it to the JSON text to send.
 * Returns a copy of the argument, palloc'd, which remains valid when the
 * argument is freed.  Returns NULL and sets *text to NULL if the parameter is
 * to be omitted from the request.  If there is a problem, *text is NULL.
 */
Jsonb *
hrflow_argument_fields(const NullableDatum *argument, const char **text,
					   HrflowProblem *problem)
{
	Jsonb	   *fields = NULL;

	if (!argument->isnull && problem->message == NULL)
		fields = check_fields(DatumGetJsonbPCopy(argument->value), problem);
	*text = make_fields_text(fields, problem);
	return fields;
}

/*
 * Check the argument "fields", which may be NULL.  Returns NULL if the
 * parameter is to be omitted from the request.  Raises 22023 if the argument
 * is not a JSON object.
 */
Jsonb *
hrflow_check_fields(Jsonb *fields)
{
	HrflowProblem problem = {NULL};

	fields = check_fields(fields, &problem);
	if (problem.message != NULL)
		hrflow_argument_raise(&problem);
	return fields;
}

/*
 * Return "fields" as JSON text in UTF-8, or NULL if "fields" is NULL.  Raises
 * 22023 if the text cannot be converted.
 */
const char *
hrflow_fields_text(Jsonb *fields)
{
	HrflowProblem problem = {NULL};
	const char *text = make_fields_text(fields, &problem);

	if (problem.message != NULL)
		hrflow_argument_raise(&problem);
	return text;
}

/*
 * Return the JSON body that requests the vector of a text datum, palloc'd.  If
 * the text is not valid, return NULL and set *problem to the reason, in a
 * whole sentence.
 */
char *
hrflow_make_text_body(Datum input, char **problem)
{
	text	   *value = DatumGetTextPP(input);
	const char *utf8;

	if (VARSIZE_ANY_EXHDR(value) == 0)
	{
		*problem = pstrdup("The text is empty.");
		return NULL;
	}
	if (VARSIZE_ANY_EXHDR(value) <= HRFLOW_MAX_TEXT)
	{
		utf8 = hrflow_text_to_utf8(text_to_cstring(value));
		if (utf8 == NULL)
		{
			*problem = pstrdup("The text cannot be converted to UTF-8.");
			return NULL;
		}
		if (strlen(utf8) <= HRFLOW_MAX_TEXT)
			return hrflow_request_text_body(utf8);
	}
	*problem = psprintf("The text is longer than %d bytes.", HRFLOW_MAX_TEXT);
	return NULL;
}

/*
 * Read the type of the items to embed.  If the type is invalid, set *problem
 * and return NULL.
 */
const char *
hrflow_argument_item_type(const NullableDatum *argument, HrflowProblem *problem)
{
	static const char *const types[] = {"profile", "job"};

	Assert(problem->message == NULL);

	for (int i = 0; i < lengthof(types) && !argument->isnull; i++)
	{
		if (strcmp(TextDatumGetCString(argument->value), types[i]) == 0)
			return types[i];
	}
	problem->message = "argument \"item_type\" must be \"profile\" or \"job\"";
	return NULL;
}

/*
 * Do the numbers in a jsonb alone take more than HRFLOW_MAX_TEXT bytes as JSON
 * text?  A number such as 1e100000 takes less than 20 bytes in a jsonb but
 * 100,001 in JSON, so the text of a small jsonb could exceed the available
 * memory.
 */
static bool
numbers_are_oversized(Jsonb *item)
{
	JsonbIterator *it = JsonbIteratorInit(&item->root);
	JsonbValue	value;
	JsonbIteratorToken token;
	size_t		length = 0;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		char	   *number;

		if ((token != WJB_ELEM && token != WJB_VALUE) ||
			value.type != jbvNumeric)
			continue;
		number = DatumGetCString(DirectFunctionCall1(numeric_out,
													 NumericGetDatum(value.val.numeric)));
		length += strlen(number);
		pfree(number);
		if (length > HRFLOW_MAX_TEXT)
			return true;
	}
	return false;
}

/*
 * Return the JSON text of an item in UTF-8.  If the text is longer than
 * HRFLOW_MAX_TEXT or cannot be converted, return NULL and set *problem to the
 * reason, in a whole sentence.
 */
static const char *
make_item_text(Jsonb *item, char **problem)
{
	const char *text;

	if (!numbers_are_oversized(item))
	{
		text = hrflow_text_to_utf8(JsonbToCString(NULL, &item->root,
												  VARSIZE(item)));
		if (text == NULL)
		{
			*problem = pstrdup("The item cannot be converted to UTF-8.");
			return NULL;
		}
		if (strlen(text) <= HRFLOW_MAX_TEXT)
			return text;
	}
	*problem = psprintf("The item is longer than %d bytes.", HRFLOW_MAX_TEXT);
	return NULL;
}

/*
 * Return the JSON body that requests the vectors of a jsonb datum, palloc'd.
 * If the item is not valid, return NULL and set *problem to the reason, in a
 * whole sentence.
 */
char *
hrflow_make_document_body(const char *item_type, Datum item,
						  bool return_sequences, char **problem)
{
	Jsonb	   *value;
	const char *text;

	/*
	 * A jsonb object takes less than 16 times as many bytes as its JSON text,
	 * so the text of a larger item would be too long.  Reject such an item
	 * without detoasting it.
	 */
	if (toast_raw_datum_size(item) / 16 > HRFLOW_MAX_TEXT)
	{
		*problem = psprintf("The item is longer than %d bytes.", HRFLOW_MAX_TEXT);
		return NULL;
	}
	value = DatumGetJsonbP(item);
	if (!JB_ROOT_IS_OBJECT(value) || JB_ROOT_COUNT(value) == 0)
	{
		*problem = pstrdup(JB_ROOT_IS_OBJECT(value) ? "The item is empty." :
						   "The item is not a JSON object.");
		return NULL;
	}
	text = make_item_text(value, problem);
	return text == NULL ? NULL :
		hrflow_request_document_body(item_type, text, return_sequences);
}
