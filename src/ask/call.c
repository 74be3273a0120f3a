/*-------------------------------------------------------------------------
 *
 * call.c
 *		Executes one call of a SQL function that requests a single object or
 *		link: reads the arguments, sends the requests, and returns the result
 *		or raises the error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/call.h"
#include "nodes/execnodes.h"
#include "utils/array.h"
#include "utils/memutils.h"

/*
 * Error context callback: add the link being fetched, if any, and the object
 * that was requested.  If the settings could not be read, omit the link: the
 * API key is then unknown, so it could not be masked in the link.
 */
void
hrflow_call_add_context(void *arg)
{
	const HrflowCall *call = arg;

	if (call->link != NULL && call->settings != NULL)
		errcontext("HrFlow link %s",
				   hrflow_response_scrub(hrflow_link_describe(call->link),
										 call->settings->api_key));
	if (call->function->add_context != NULL)
		call->function->add_context(call);
}

/*
 * Initialize a call and read its arguments.  If the arguments are not valid,
 * set the call's state to HRFLOW_CALL_INVALID rather than raise an error.
 */
void
hrflow_call_read(HrflowCall *call, const HrflowFunction *function,
				 const NullableDatum *args)
{
	memset(call, 0, sizeof(*call));
	call->function = function;
	call->state = HRFLOW_CALL_READ;
	function->read(call, args);
	if (call->problem.message != NULL)
		call->state = HRFLOW_CALL_INVALID;
}

/*
 * Prepare the request for a link, or complete the call if the link is not
 * allowed.
 */
static void
prepare_link(HrflowCall *call, char *link)
{
	const char *refusal;
	bool		by_name;

	call->link = link;
	refusal = hrflow_link_refusal(link, call->settings->link_hosts, &by_name);
	if (refusal != NULL)
	{
		memset(&call->result, 0, sizeof(call->result));
		call->result.status = HRFLOW_LINK_REFUSED;
		call->result.is_link = true;
		call->result.detail = unconstify(char *, refusal);
		call->state = HRFLOW_CALL_DONE;
		return;
	}
	call->url = link;
	call->body = NULL;
	call->target = by_name ? HRFLOW_TO_LINK : HRFLOW_TO_GUARDED_LINK;
	call->state = HRFLOW_CALL_READY;
}

/*
 * Prepare the first request of a call whose arguments have been read.  If no
 * request can be made, the call is HRFLOW_CALL_INVALID afterwards, or
 * HRFLOW_CALL_DONE if its link is not allowed.
 */
void
hrflow_call_prepare(HrflowCall *call, const HrflowSettings *settings)
{
	Assert(call->state == HRFLOW_CALL_READ);

	call->settings = settings;
	if (!call->function->needs_key)
	{
		prepare_link(call, call->link);
		return;
	}
	call->target = HRFLOW_TO_API;
	call->url = call->function->make_url(call);
	call->state = HRFLOW_CALL_READY;
	if (call->url == NULL)
	{
		call->state = HRFLOW_CALL_INVALID;
		if (call->problem.message != NULL)
			return;
		call->problem.message = "request to the HrFlow API would be too long";
		call->problem.detail = psprintf("The URL would exceed %d bytes.",
										HRFLOW_MAX_URL);
	}
}

/*
 * Submit the prepared request to a transport, with a pointer to the call as
 * the tag.
 */
void
hrflow_call_submit(HrflowCall *call, HrflowTransport *transport)
{
	Assert(call->state == HRFLOW_CALL_READY);

	if (call->body != NULL)
		hrflow_transport_post(transport, call->url, call->body, call);
	else
		hrflow_transport_submit(transport, call->target, call->url, call);
	call->state = HRFLOW_CALL_SENT;
}

/*
 * Parse a reply into the result of a call.  Parsing takes several times as
 * much memory as the value, and the read-ahead keeps many values, so after
 * success free all memory except that of the value.
 */
static void
parse_reply(HrflowCall *call, HrflowReply *reply, bool is_link)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed reply",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	HrflowResult *result = &call->result;

	if (is_link)
		hrflow_response_parse_vector(reply, result);
	else
		hrflow_response_parse(reply, call->function->endpoint,
							  call->settings, result);
	MemoryContextSwitchTo(old);
	if (result->status != HRFLOW_OK)
		return;
	if (result->data != NULL)
		result->data = DatumGetJsonbPCopy(JsonbPGetDatum(result->data));
	if (result->vector != NULL)
		result->vector = DatumGetArrayTypePCopy(PointerGetDatum(result->vector));
	MemoryContextDelete(context);
}

/*
 * Process a reply from the transport.  Afterwards the call is complete, or its
 * request is being retried, or its next request is ready to be submitted.  If
 * the transport was stopped and abandoned the request, the same request is
 * ready to be submitted again.
 */
void
hrflow_call_take_reply(HrflowCall *call, HrflowTransport *transport,
					   HrflowReply *reply)
{
	bool		is_link = HRFLOW_IS_LINK(reply->target);

	Assert(call->state == HRFLOW_CALL_SENT);

	if (reply->stopped)
	{
		/* A POST that was sent must not be sent again. */
		Assert(call->body == NULL || !reply->was_sent);
		hrflow_transport_release(transport, reply);
		call->state = HRFLOW_CALL_READY;
		return;
	}

	parse_reply(call, reply, is_link);
	if (hrflow_transport_retry(transport, reply, call->result.status,
							   call->result.transient))
		return;
	hrflow_transport_release(transport, reply);

	call->state = HRFLOW_CALL_DONE;
	if (call->result.status == HRFLOW_OK && call->function->follows_link &&
		!is_link)
	{
		JsonbValue *link =
		getIthJsonbValueFromContainer(&call->result.data->root, 0);

		prepare_link(call, pnstrdup(link->val.string.val,
									link->val.string.len));
	}
}

/*
 * Return the value of a call that is done, invalid or empty, or raise the
 * call's error.  The value is NULL if there was nothing to request, or if
 * hrflow_embed.on_missing is "null" and the object or its vector is missing.
 */
Datum
hrflow_call_value(HrflowCall *call, bool *isnull)
{
	ErrorContextCallback context;

	*isnull = call->state == HRFLOW_CALL_EMPTY;
	if (*isnull)
		return (Datum) 0;

	/*
	 * The error is in the arguments, so raise it without our error context.
	 */
	if (call->state == HRFLOW_CALL_INVALID && call->settings == NULL)
		hrflow_argument_raise(&call->problem);

	if (call->state == HRFLOW_CALL_DONE && call->result.status == HRFLOW_OK)
		return call->function->returns_vector ?
			PointerGetDatum(call->result.vector) :
			JsonbPGetDatum(call->result.data);

	if (call->state == HRFLOW_CALL_DONE &&
		hrflow_missing_accept(call->settings, &call->result))
	{
		*isnull = true;
		return (Datum) 0;
	}

	hrflow_context_push(&context, hrflow_call_add_context, call);

	if (call->state == HRFLOW_CALL_INVALID)
		hrflow_argument_raise(&call->problem);
	Assert(call->state == HRFLOW_CALL_DONE);
	hrflow_error_raise(&call->result);
}

/*
 * Return the links in the reply for a profile, as a list of HrflowLink.
 * Raises an error if the reply is not valid.
 */
List *
hrflow_call_links(HrflowCall *call)
{
	List	   *links;

	if (!hrflow_links_collect(call->result.data, call->fields,
							  call->settings->api_key, &links,
							  &call->result.detail))
	{
		bool		isnull;

		call->result.status = HRFLOW_INVALID_REPLY;
		(void) hrflow_call_value(call, &isnull);
	}
	return links;
}

/*
 * Send the requests of a call that is ready, and wait for their replies.
 */
static void
exchange_requests(HrflowCall *call, HrflowTransport *transport)
{
	do
	{
		if (call->state == HRFLOW_CALL_READY)
			hrflow_call_submit(call, transport);
		hrflow_call_take_reply(call, transport,
							   hrflow_transport_next(transport));
	} while (call->state == HRFLOW_CALL_READY ||
			 call->state == HRFLOW_CALL_SENT);
}

/*
 * Run the requests of a call that is ready.  An error must end the transport;
 * see the comments at the top of transport.c.
 */
static void
run_requests(HrflowCall *call)
{
	HrflowActivity *activity = hrflow_activity_begin(call->function->caller,
													 NULL);
	HrflowTransport *volatile transport = NULL;

	activity->state.ntotal = 1;
	PG_TRY();
	{
		transport = hrflow_transport_begin(call->settings, activity, 0);
		exchange_requests(call, transport);
	}
	PG_FINALLY();
	{
		if (transport != NULL)
			hrflow_transport_end(transport);
		hrflow_activity_end(activity);
	}
	PG_END_TRY();
}

/*
 * If a call that is ready to be submitted was issued ahead and is complete,
 * take its result and return true.  This applies only to set-returning
 * functions: the calls of other functions are columns of the read-ahead node.
 */
static bool
take_answer(HrflowCall *call, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	return rsinfo != NULL && IsA(rsinfo, ReturnSetInfo) &&
		hrflow_ahead_take(rsinfo->econtext->ecxt_estate, call);
}

/*
 * Run a call from beginning to end, for a SQL function.  Returns its value or
 * raises its error.
 */
Datum
hrflow_call_run(HrflowCall *call, const HrflowFunction *function,
				FunctionCallInfo fcinfo, bool *isnull)
{
	ErrorContextCallback context;

	hrflow_call_read(call, function, fcinfo->args);
	if (call->state == HRFLOW_CALL_READ)
	{
		hrflow_context_push(&context, hrflow_call_add_context, call);

		hrflow_call_prepare(call, hrflow_settings_get(function->needs_key));
		if (call->state == HRFLOW_CALL_READY && !take_answer(call, fcinfo))
			run_requests(call);

		hrflow_context_pop(&context);
	}
	return hrflow_call_value(call, isnull);
}
