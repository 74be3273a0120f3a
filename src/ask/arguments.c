/*-------------------------------------------------------------------------
 *
 * arguments.c
 *		Checks of the arguments that several SQL functions have.
 *
 * The functions that take an HrflowProblem raise nothing because of an
 * argument's content.  They report the first problem that is met, and the
 * caller raises it when it is due: that is at once, or when the row of a call
 * is reached whose arguments were read ahead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "utils/builtins.h"

/*
 * Raise a problem as an invalid parameter value (22023).
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
 * Read an identifier, and convert it to UTF-8.  Returns NULL when it is NULL,
 * or when there is a problem.
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
		problem->message = psprintf("%s must not be empty", name);
		problem->hint = "Pass NULL for an identifier that is not to be sent.";
		return NULL;
	}
	value = hrflow_text_to_utf8(value);
	if (value == NULL)
		problem->message = psprintf("%s cannot be converted to UTF-8", name);
	return value;
}

/*
 * Check the argument "fields" (or NULL).  Returns NULL when it is to be left
 * out of the request, or when there is a problem.
 */
static Jsonb *
check_fields(Jsonb *fields, HrflowProblem *problem)
{
	if (fields == NULL)
		return NULL;
	if (!JB_ROOT_IS_OBJECT(fields))
	{
		problem->message = "fields must be a JSON object";
		problem->hint = "For example: {\"profile\": 1, \"experiences\": [0, 2]}.";
		return NULL;
	}
	return JB_ROOT_COUNT(fields) == 0 ? NULL : fields;
}

/*
 * The JSON text of "fields" (or NULL) in UTF-8.  Returns NULL when there is
 * none, or when there is a problem.
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
		problem->message = "fields cannot be converted to UTF-8";
	return text;
}

/*
 * Read the argument "fields", and make the text that is sent.  Both are NULL
 * when it is to be left out, or when there is a problem.
 */
Jsonb *
hrflow_argument_fields(const NullableDatum *argument, const char **text,
					   HrflowProblem *problem)
{
	Jsonb	   *fields = NULL;

	if (!argument->isnull && problem->message == NULL)
		fields = check_fields(DatumGetJsonbP(argument->value), problem);
	*text = make_fields_text(fields, problem);
	return fields;
}

/*
 * Check the argument "fields" (or NULL).  Returns NULL when it is to be left
 * out of the request.  Raises 22023 when it is not a JSON object.
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
 * The JSON text of "fields" in UTF-8; NULL for NULL.  Raises 22023 when it
 * cannot be converted.
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
 * The JSON that asks for the vector of a datum of type text, palloc'd; or NULL
 * and *problem, a sentence.
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
