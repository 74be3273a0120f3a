/*-------------------------------------------------------------------------
 *
 * arrays.c
 *		Batch sources whose elements come from the array arguments of a SQL
 *		function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/arrays.h"
#include "common/hashfn.h"
#include "compat.h"
#include "nodes/primnodes.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* Argument numbers of the functions that request profiles. */
enum
{
	ARG_SOURCE_ID,
	ARG_PROFILE_IDS,
	ARG_FIELDS,
	ARG_PROFILE_REFERENCES,
	ARG_PROFILE_EMAILS
};

/*
 * ------------------------------------------------------------------------
 * Arrays
 * ------------------------------------------------------------------------
 */

/*
 * Read an array argument, and append it to the arrays of the source.  All
 * arrays that are not NULL must have the same length.
 */
static void
add_array(HrflowArraySource *source, FunctionCallInfo fcinfo, int argno,
		  const char *name, const char *plural)
{
	HrflowArray *array = &source->arrays[source->narrays++];
	ArrayType  *argument;
	int			n;

	array->name = name;
	if (PG_ARGISNULL(argno))
		return;

	argument = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(argument) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a one-dimensional array",
						plural)));
	deconstruct_array(argument, ARR_ELEMTYPE(argument), -1, false, TYPALIGN_INT,
					  &array->values, &array->nulls, &n);
	if (source->base.nelements >= 0 && n != source->base.nelements)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays of identifiers must have the same length"),
				 errdetail("The length of argument \"%s\" is %d, but that of another array is %d.",
						   plural, n, source->base.nelements)));
	source->base.nelements = n;
}

/*
 * Initialize the source of a function that has only one array.  NULL is
 * treated as an empty array, because array_agg() returns NULL if there are no
 * rows.
 */
static void
take_single_array(HrflowArraySource *source, FunctionCallInfo fcinfo, int argno,
				  const char *name, const char *plural)
{
	source->base.nelements = -1;
	add_array(source, fcinfo, argno, name, plural);
	source->base.nelements = Max(source->base.nelements, 0);
}

static bool
is_empty_element(const HrflowArraySource *source, int element)
{
	for (int i = 0; i < source->narrays; i++)
	{
		if (!hrflow_array_is_null(&source->arrays[i], element))
			return false;
	}
	return true;
}

static uint32
hash_of_element(const HrflowSource *source, int element)
{
	const HrflowArraySource *self = (const HrflowArraySource *) source;
	uint32		hash = 0;

	for (int i = 0; i < self->narrays; i++)
	{
		const HrflowArray *array = &self->arrays[i];
		text	   *value;

		if (hrflow_array_is_null(array, element))
			continue;
		value = DatumGetTextPP(array->values[element]);
		hash = hash_combine(hash, hash_bytes((unsigned char *) VARDATA_ANY(value),
											 VARSIZE_ANY_EXHDR(value)) + i);
	}
	return hash;
}

static bool
elements_are_equal(const HrflowSource *source, int a, int b)
{
	const HrflowArraySource *self = (const HrflowArraySource *) source;

	for (int i = 0; i < self->narrays; i++)
	{
		const HrflowArray *array = &self->arrays[i];
		text	   *value_a;
		text	   *value_b;

		if (hrflow_array_is_null(array, a) != hrflow_array_is_null(array, b))
			return false;
		if (hrflow_array_is_null(array, a))
			continue;
		value_a = DatumGetTextPP(array->values[a]);
		value_b = DatumGetTextPP(array->values[b]);
		if (VARSIZE_ANY_EXHDR(value_a) != VARSIZE_ANY_EXHDR(value_b) ||
			memcmp(VARDATA_ANY(value_a), VARDATA_ANY(value_b),
				   VARSIZE_ANY_EXHDR(value_a)) != 0)
			return false;
	}
	return true;
}

/*
 * ------------------------------------------------------------------------
 * Profiles
 * ------------------------------------------------------------------------
 */

/*
 * Was an argument specified in the call, rather than being the default?  Both
 * a specified argument and the default can be a constant NULL, but the default
 * is read from the catalogs, where expressions have no location in the text of
 * a query.  In a call that itself is read from the catalogs, as in a view,
 * every argument counts as specified.  A NULL that results from constant
 * folding can be mistaken for the default.  Returns false if the expression of
 * the call is unknown.
 */
static bool
is_specified(FunctionCallInfo fcinfo, int argno)
{
	Node	   *call = fcinfo->flinfo->fn_expr;
	Node	   *argument;

	if (call == NULL || !IsA(call, FuncExpr) ||
		list_length(((FuncExpr *) call)->args) <= argno)
		return false;
	argument = list_nth(((FuncExpr *) call)->args, argno);
	return !IsA(argument, Const) || ((Const *) argument)->location >= 0 ||
		((FuncExpr *) call)->location < 0;
}

/*
 * Read the identifiers of an element into a query.  Returns NULL, or a whole
 * sentence that says why the element cannot be requested.
 */
static char *
make_profile_query(const HrflowArraySource *source, int element, HrflowQuery *query)
{
	const char *values[HRFLOW_MAX_ARRAYS] = {NULL};

	if (source->source_id == NULL)
		return pstrdup(source->bad_source_id);

	for (int i = 0; i < source->narrays; i++)
	{
		const HrflowArray *array = &source->arrays[i];
		const char *value;

		if (hrflow_array_is_null(array, element))
			continue;
		value = TextDatumGetCString(array->values[element]);
		if (*value == '\0')
			return psprintf("The %s is empty.", array->name);
		values[i] = hrflow_text_to_utf8(value);
		if (values[i] == NULL)
			return psprintf("The %s cannot be converted to UTF-8.",
							array->name);
	}
	if (values[0] == NULL && values[1] == NULL && values[2] == NULL)
		return pstrdup("All identifiers are null.");

	query->source_id = source->source_id;
	query->profile_id = values[0];
	query->profile_reference = values[1];
	query->profile_email = values[2];
	query->fields = source->fields_text;
	return NULL;
}

static HrflowElementKind
make_profile_request(HrflowSource *source, int element,
					 HrflowElementRequest *request, HrflowResult *problem)
{
	HrflowArraySource *self = (HrflowArraySource *) source;
	HrflowQuery query;

	problem->detail = make_profile_query(self, element, &query);
	if (problem->detail != NULL)
		return is_empty_element(self, element) ? HRFLOW_ELEMENT_EMPTY :
			HRFLOW_ELEMENT_INVALID;
	request->url = hrflow_request_profile(source->settings->base_url,
										  source->settings->dialect, &query);
	if (request->url == NULL)
	{
		problem->detail = "The URL would be too long.";
		return HRFLOW_ELEMENT_INVALID;
	}
	return HRFLOW_ELEMENT_ASKED;
}

static Jsonb *
fields_of_profile(const HrflowSource *source, int element)
{
	return ((const HrflowArraySource *) source)->fields;
}

static const HrflowSourceMethods profile_source_methods = {
	.endpoint = HRFLOW_PROFILE,
	.hash = hash_of_element,
	.equal = elements_are_equal,
	.make_request = make_profile_request,
	.fields = fields_of_profile
};

/*
 * Initialize a source from the arguments of a function that requests profiles.
 */
void
hrflow_arrays_take_profiles(HrflowArraySource *source, FunctionCallInfo fcinfo)
{
	source->base.methods = &profile_source_methods;
	source->base.nelements = -1;
	add_array(source, fcinfo, ARG_PROFILE_IDS, "profile_id", "profile_ids");
	add_array(source, fcinfo, ARG_PROFILE_REFERENCES, "profile_reference",
			  "profile_references");
	add_array(source, fcinfo, ARG_PROFILE_EMAILS, "profile_email",
			  "profile_emails");
	if (source->base.nelements < 0)
	{
		if (!is_specified(fcinfo, ARG_PROFILE_IDS) &&
			!is_specified(fcinfo, ARG_PROFILE_REFERENCES) &&
			!is_specified(fcinfo, ARG_PROFILE_EMAILS))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("no identifiers were specified"),
					 errhint("Pass \"profile_ids\", \"profile_references\" or \"profile_emails\".")));

		/*
		 * Treat NULL as an empty array, because array_agg() returns NULL if
		 * there are no rows.
		 */
		source->base.nelements = 0;
	}

	source->fields = hrflow_check_fields(PG_ARGISNULL(ARG_FIELDS) ? NULL :
										 PG_GETARG_JSONB_P(ARG_FIELDS));
	hrflow_section_check_fields(source->fields);
	source->fields_text = hrflow_fields_text(source->fields);
	source->bad_source_id = "The source_id is null or empty.";
	if (!PG_ARGISNULL(ARG_SOURCE_ID))
	{
		const char *source_id = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SOURCE_ID));

		if (*source_id != '\0')
		{
			source->source_id = hrflow_text_to_utf8(source_id);
			source->bad_source_id = "The source_id cannot be converted to UTF-8.";
		}
	}
}

/*
 * ------------------------------------------------------------------------
 * Links, texts and documents
 * ------------------------------------------------------------------------
 */

static HrflowElementKind
make_link_request(HrflowSource *source, int element,
				  HrflowElementRequest *request, HrflowResult *problem)
{
	const HrflowArray *links = &((HrflowArraySource *) source)->arrays[0];

	if (hrflow_array_is_null(links, element))
	{
		problem->detail = "The link is null.";
		return HRFLOW_ELEMENT_EMPTY;
	}
	request->url = TextDatumGetCString(links->values[element]);
	return HRFLOW_ELEMENT_ASKED;
}

static HrflowElementKind
make_text_request(HrflowSource *source, int element,
				  HrflowElementRequest *request, HrflowResult *problem)
{
	HrflowArraySource *self = (HrflowArraySource *) source;
	const HrflowArray *texts = &self->arrays[0];

	if (hrflow_array_is_null(texts, element))
	{
		problem->detail = "The text is null.";
		return HRFLOW_ELEMENT_EMPTY;
	}
	request->url = self->post_url;
	request->body = hrflow_make_text_body(texts->values[element],
										  &problem->detail);
	return request->body != NULL ? HRFLOW_ELEMENT_ASKED :
		HRFLOW_ELEMENT_INVALID;
}

static HrflowElementKind
make_document_request(HrflowSource *source, int element,
					  HrflowElementRequest *request, HrflowResult *problem)
{
	HrflowArraySource *self = (HrflowArraySource *) source;
	const HrflowArray *items = &self->arrays[0];

	if (hrflow_array_is_null(items, element))
	{
		problem->detail = "The item is null.";
		return HRFLOW_ELEMENT_EMPTY;
	}
	request->url = self->post_url;
	request->body = hrflow_make_document_body(self->item_type,
											  items->values[element], false,
											  &problem->detail);
	return request->body != NULL ? HRFLOW_ELEMENT_ASKED :
		HRFLOW_ELEMENT_INVALID;
}

static const HrflowSourceMethods link_source_methods = {
	.is_links = true,
	.endpoint = HRFLOW_PROFILE,
	.hash = hash_of_element,
	.equal = elements_are_equal,
	.make_request = make_link_request
};

static const HrflowSourceMethods text_source_methods = {
	.endpoint = HRFLOW_TEXT,
	.hash = hash_of_element,
	.equal = elements_are_equal,
	.make_request = make_text_request
};

static const HrflowSourceMethods document_source_methods = {
	.endpoint = HRFLOW_DOCUMENT,
	.hash = hash_of_element,
	.equal = elements_are_equal,
	.make_request = make_document_request
};

/*
 * Initialize a source from the argument of a function that fetches links.
 */
void
hrflow_arrays_take_links(HrflowArraySource *source, FunctionCallInfo fcinfo)
{
	source->base.methods = &link_source_methods;
	take_single_array(source, fcinfo, 0, "link", "links");
}

/*
 * Initialize a source from the argument of a function that embeds texts.
 */
void
hrflow_arrays_take_texts(HrflowArraySource *source, FunctionCallInfo fcinfo)
{
	source->base.methods = &text_source_methods;
	take_single_array(source, fcinfo, 0, "input", "inputs");
}

/*
 * Initialize a source from the arguments of a function that embeds documents.
 */
void
hrflow_arrays_take_documents(HrflowArraySource *source, FunctionCallInfo fcinfo)
{
	HrflowProblem problem = {NULL};

	source->base.methods = &document_source_methods;
	source->item_type = hrflow_argument_item_type(&fcinfo->args[0], &problem);
	if (problem.message != NULL)
		hrflow_argument_raise(&problem);
	take_single_array(source, fcinfo, 1, "item", "items");
}
