/*-------------------------------------------------------------------------
 *
 * response.c
 *		Interprets replies from the API and from the hosts of links.
 *
 * No reply is trusted.  The checks of a reply from the API are, in this order:
 * size (the transport checks the maximum), content type, NUL, UTF-8, JSON and
 * its nesting depth, envelope, status, data.
 *
 * The functions in this file are pure: their results depend only on their
 * arguments and the server encoding.  They do not raise errors about the
 * content of a reply.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "ask/ask.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

/*
 * Minimum length of the parts of a key that are masked, in bytes.  Shorter
 * parts do not reveal the key, and occur in ordinary words.
 */
#define SCRUB_MIN 8

/*
 * Maximum length of a text from the network that show_text() processes, in
 * bytes.  It exceeds the maximum length that is shown, because masking can
 * make a text shorter.
 */
#define MAX_SCRUBBED (16 * HRFLOW_MAX_MESSAGE)

/* The envelope of a reply: {"code": ..., "message": ..., "data": ...}. */
typedef struct Envelope
{
	int			code;			/* 0 if there is none */
	char	   *message;		/* in UTF-8; NULL if there is none */
	Jsonb	   *data;			/* NULL if there is none */
	HrflowSpan	embedding;		/* position of a text's embedding in the reply */
} Envelope;

/*
 * ------------------------------------------------------------------------
 * Texts from the network
 * ------------------------------------------------------------------------
 */

/*
 * Return the length of the longest substring of the secret with which "text"
 * begins, ignoring case.
 */
static int
matching_run(const char *text, const char *secret)
{
	int			longest = 0;

	for (; *secret; secret++)
	{
		int			n = 0;

		while (secret[n] && text[n] &&
			   pg_tolower((unsigned char) secret[n]) ==
			   pg_tolower((unsigned char) text[n]))
			n++;
		longest = Max(longest, n);
	}
	return longest;
}

/*
 * If the text begins with what looks like an HrFlow key, ours or another,
 * return the length of the key, else 0.
 */
static int
foreign_key_length(const char *text)
{
	int			prefix;
	int			digits;

	if (strncmp(text, "ask", 3) != 0)
		return 0;
	prefix = 3 + (text[3] == 'r' || text[3] == 'w');
	if (text[prefix] != '_')
		return 0;
	digits = strspn(text + prefix + 1, "0123456789abcdefABCDEF");
	return digits >= SCRUB_MIN ? prefix + 1 + digits : 0;
}

/*
 * Make text from a server safe to show: mask HrFlow keys, and parts of the
 * secret (which may be empty) that have at least SCRUB_MIN bytes; replace
 * ASCII control characters by spaces so that no log line can be forged; and
 * truncate the text.  "message" must be valid in the server encoding.  The
 * result is palloc'd.
 */
char *
hrflow_response_scrub(const char *message, const char *secret)
{
	StringInfoData out;
	const char *p = message;

	initStringInfo(&out);
	while (*p)
	{
		int			run = Max(matching_run(p, secret), foreign_key_length(p));
		int			n = pg_mblen(p);

		if (out.len + Max(n, SCRUB_MIN) > HRFLOW_MAX_MESSAGE)
		{
			appendStringInfoString(&out, "...");
			break;
		}
		if (run >= SCRUB_MIN)
		{
			appendStringInfoString(&out, "********");
			p += run;
			continue;
		}
		if (n == 1 && ((unsigned char) *p < ' ' || *p == 0x7f))
			appendStringInfoChar(&out, ' ');
		else
			appendBinaryStringInfo(&out, p, n);
		p += n;
	}
	while (out.len > 0 && out.data[out.len - 1] == ' ')
		out.data[--out.len] = '\0';
	return out.data;
}

/*
 * Convert a text that should be UTF-8 to the server encoding, and scrub and
 * truncate it.
 */
static char *
show_text(const char *text, const char *secret)
{
	size_t		length = strlen(text);

	/*
	 * The length that pg_encoding_mbcliplen() returns can exceed that of the
	 * text if the text ends in the middle of a character.
	 */
	length = Min(length, pg_encoding_mbcliplen(PG_UTF8, text, length,
											   MAX_SCRUBBED));
	return hrflow_response_scrub(hrflow_text_show_utf8(text, length), secret);
}

/*
 * Describe a reply from the API, for example "The HrFlow API answered HTTP
 * 400, code 400: Invalid profile array".  Includes the number of attempts if
 * there were several, and a Retry-After.
 */
static char *
describe_answer(const HrflowReply *reply, const Envelope *envelope,
				const char *problem, const char *secret)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfo(&out, "The HrFlow API answered HTTP %d",
					 reply->http_status);
	if (envelope->code != 0)
		appendStringInfo(&out, ", code %d", envelope->code);
	if (reply->attempts > 1)
		appendStringInfo(&out, ", after %d attempts", reply->attempts);
	if (reply->retry_after > 0)
		appendStringInfo(&out, ", Retry-After %d s", reply->retry_after);
	if (problem != NULL)
		appendStringInfo(&out, ": %s", problem);
	if (envelope->message != NULL && *envelope->message != '\0')
		appendStringInfo(&out, ": %s",
						 show_text(envelope->message, secret));
	return out.data;
}

/*
 * ------------------------------------------------------------------------
 * Bytes to envelope
 * ------------------------------------------------------------------------
 */

/*
 * Is the content type application/json, with or without parameters?
 */
static bool
is_json_type(const char *type)
{
	static const char json[] = "application/json";
	int			n = sizeof(json) - 1;

	if (type == NULL || pg_strncasecmp(type, json, n) != 0)
		return false;
	while (type[n] == ' ' || type[n] == '\t')
		n++;
	return type[n] == '\0' || type[n] == ';';
}

/*
 * Return the value of an object's member, or NULL if there is no such member.
 */
static JsonbValue *
get_member(const JsonbValue *object, const char *key)
{
	for (int i = 0; i < object->val.object.nPairs; i++)
	{
		JsonbPair  *pair = &object->val.object.pairs[i];

		if (pair->key.val.string.len == strlen(key) &&
			memcmp(pair->key.val.string.val, key, strlen(key)) == 0)
			return &pair->value;
	}
	return NULL;
}

/*
 * Convert a numeric to a three-digit status code.  Returns -1 if it is not
 * one.
 */
static int
numeric_code(Numeric number)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
														   NumericGetDatum(number)));

	if (strlen(text) != 3 || strspn(text, "0123456789") != 3)
		return -1;
	return atoi(text);
}

/*
 * Parse the envelope.  Returns NULL, or a clause that describes what is wrong
 * with the reply.  The clause can follow a colon.
 */
static const char *
parse_envelope(const HrflowReply *reply, HrflowEndpoint endpoint,
			   Envelope *envelope)
{
	JsonbValue *object;
	JsonbValue *value;
	bool		too_deep;

	memset(envelope, 0, sizeof(*envelope));

	if (reply->length == 0)
		return "the body is empty";
	if (!is_json_type(reply->content_type))
		return "the content type is not application/json";
	if (memchr(reply->body, '\0', reply->length) != NULL)
		return "the body contains a NUL character";
	if (pg_encoding_verifymbstr(PG_UTF8, reply->body,
								reply->length) != reply->length)
		return "the body is not valid UTF-8";
	if (endpoint == HRFLOW_TEXT)
		object = hrflow_json_parse_without(reply->body, "data", "embedding",
										   &envelope->embedding, &too_deep);
	else
		object = hrflow_json_parse(reply->body, "data", &too_deep);
	if (too_deep)
		return "the JSON nests too deeply";
	if (object == NULL || object->type != jbvObject)
		return "the body is not a JSON object that jsonb can hold";

	value = get_member(object, "code");
	if (value != NULL)
	{
		envelope->code = value->type == jbvNumeric ?
			numeric_code(value->val.numeric) : -1;
		if (envelope->code < 0)
		{
			envelope->code = 0;
			return "the \"code\" in the JSON is not a status code";
		}
	}
	value = get_member(object, "message");
	if (value != NULL && value->type == jbvString)
		envelope->message = pnstrdup(value->val.string.val,
									 value->val.string.len);
	value = get_member(object, "data");
	if (value != NULL)
		envelope->data = JsonbValueToJsonb(value);
	return NULL;
}

/*
 * ------------------------------------------------------------------------
 * Results
 * ------------------------------------------------------------------------
 */

static bool
begins_with(const char *text, const char *prefix)
{
	return text != NULL && strncmp(text, prefix, strlen(prefix)) == 0;
}

/*
 * Does the endpoint return stored objects, so that an object can be missing?
 */
static bool
has_objects(HrflowEndpoint endpoint)
{
	return endpoint == HRFLOW_PROFILE || endpoint == HRFLOW_JOB;
}

/*
 * Return the status for code 400, which the API uses for several errors.  Only
 * the message distinguishes them.
 */
static HrflowStatus
classify_400(HrflowEndpoint endpoint, const char *message)
{
	if (!has_objects(endpoint))
		return HRFLOW_INVALID_REQUEST;
	if (begins_with(message, endpoint == HRFLOW_JOB ? "Invalid board" :
					"Invalid source"))
		return HRFLOW_INVALID_SOURCE;
	if (begins_with(message, endpoint == HRFLOW_JOB ? "Invalid job" :
					"Invalid profile"))
		return HRFLOW_NOT_FOUND;
	if (begins_with(message, "Invalid key. File doesn't exist"))
		return HRFLOW_NO_VECTOR;
	return HRFLOW_INVALID_REQUEST;
}

/*
 * Return the status for an error code.
 */
static HrflowStatus
classify_error(HrflowEndpoint endpoint, int code, bool has_envelope,
			   const char *message)
{
	switch (code)
	{
		case 400:
			return classify_400(endpoint, message);
		case 401:
			return HRFLOW_UNAUTHORIZED;
		case 402:
			return HRFLOW_OVER_QUOTA;
		case 403:
			return HRFLOW_FORBIDDEN;
		case 404:
			return has_envelope && has_objects(endpoint) ? HRFLOW_NOT_FOUND :
				HRFLOW_HTTP_ERROR;
		case 408:
			return HRFLOW_TIMEOUT;
		case 422:
			return HRFLOW_INVALID_REQUEST;
		case 429:
			return HRFLOW_RATE_LIMITED;
	}
	return code >= 300 && code < 400 ? HRFLOW_INVALID_REPLY :
		HRFLOW_HTTP_ERROR;
}

static inline bool
is_success(int code)
{
	return code >= 200 && code < 300;
}

/*
 * Make the result of an attempt without a complete reply.  libcurl's message
 * may quote data from the peer, such as the name in a certificate, so mask
 * keys in the message, too.
 */
static void
copy_failure(const HrflowReply *reply, const char *secret,
			 HrflowResult *result)
{
	result->status = reply->status;
	result->transient = reply->transient;
	result->was_sent = reply->was_sent &&
		(reply->http_status == 0 || reply->status == HRFLOW_TIMEOUT ||
		 reply->status == HRFLOW_CONNECTION_LOST);
	if (reply->detail == NULL)
		return;
	result->detail = show_text(reply->detail, secret);
	if (reply->attempts > 1)
		result->detail = psprintf("%s (%d attempts)", result->detail,
								  reply->attempts);
}

/*
 * Decode the vector in a reply.  If "dimension" is not 0, a payload in base64
 * contains one or more vectors of "dimension" elements each.
 */
static void
take_vector(const char *payload, size_t length, int dimension,
			const char *secret, HrflowResult *result)
{
	HrflowBadVector bad;

	result->vector = hrflow_decode_payload(payload, length, dimension, &bad);
	if (result->vector == NULL)
	{
		result->status = HRFLOW_INVALID_VECTOR;
		result->detail = hrflow_response_scrub(bad.detail, secret);
	}
}

/*
 * Is the data a list of one object with an embedding, which the parser
 * skipped?
 */
static bool
is_one_embedding(const Envelope *envelope)
{
	JsonbContainer *list = &envelope->data->root;
	JsonbValue *element;
	JsonbValue	embedding;

	if (envelope->embedding.n != 1 || !JsonContainerIsArray(list) ||
		JsonContainerIsScalar(list) || JsonContainerSize(list) != 1)
		return false;
	element = getIthJsonbValueFromContainer(list, 0);
	return element->type == jbvBinary &&
		JsonContainerIsObject(element->val.binary.data) &&
		getKeyJsonValueFromContainer(element->val.binary.data, "embedding",
									 strlen("embedding"), &embedding) != NULL &&
		embedding.type == jbvNull;
}

/*
 * Check the data of a reply.  Returns NULL, or a clause that describes what is
 * wrong with the data.
 */
static const char *
check_data(HrflowEndpoint endpoint, const Envelope *envelope)
{
	Jsonb	   *data = envelope->data;

	if (data == NULL)
		return "the JSON has no \"data\"";
	switch (endpoint)
	{
		case HRFLOW_PROFILE:
		case HRFLOW_AUTH:
			if (!JB_ROOT_IS_OBJECT(data))
				return "the \"data\" in the JSON is not an object";
			break;
		case HRFLOW_JOB:
		case HRFLOW_DOCUMENT:
			if (!JB_ROOT_IS_SCALAR(data) ||
				getIthJsonbValueFromContainer(&data->root, 0)->type != jbvString)
				return "the \"data\" in the JSON is not a string";
			break;
		case HRFLOW_TEXT:
			if (!is_one_embedding(envelope))
				return "the \"data\" in the JSON is not a list of one embedding";
			break;
	}
	return NULL;
}

/*
 * Interpret the API's reply to a request that was sent with the given
 * settings.  The data, vector and detail of the result are palloc'd in the
 * current memory context, and do not point into the reply.
 *
 * The HTTP status and the code in the body may disagree.  If either is an
 * error, the result is an error; if both are, the code in the body determines
 * the status.
 */
void
hrflow_response_parse(const HrflowReply *reply, HrflowEndpoint endpoint,
					  const HrflowSettings *settings, HrflowResult *result)
{
	const char *secret = settings->api_key;
	Envelope	envelope;
	const char *problem;
	int			code;

	memset(result, 0, sizeof(*result));
	result->endpoint = endpoint;
	result->http_status = reply->http_status;

	if (reply->status != HRFLOW_OK)
	{
		copy_failure(reply, secret, result);
		return;
	}

	problem = parse_envelope(reply, endpoint, &envelope);

	code = reply->http_status;
	if (envelope.code != 0 && !is_success(envelope.code))
		code = envelope.code;

	if (!is_success(code))
	{
		/* Report the error even if the body is not valid JSON. */
		result->status = classify_error(endpoint, code, problem == NULL &&
										envelope.code != 0,
										envelope.message);
		result->transient = code == 408 || code == 429 || code >= 500;
		result->detail = describe_answer(reply, &envelope,
										 result->status == HRFLOW_INVALID_REPLY ?
										 "redirects are not followed" : NULL,
										 secret);
		return;
	}

	if (problem == NULL)
		problem = check_data(endpoint, &envelope);
	if (problem != NULL)
	{
		result->status = HRFLOW_INVALID_REPLY;
		envelope.message = NULL;
		result->detail = describe_answer(reply, &envelope, problem, secret);
		return;
	}

	if (endpoint == HRFLOW_TEXT)
		take_vector(envelope.embedding.start, envelope.embedding.length, 0,
					secret, result);
	else if (endpoint == HRFLOW_DOCUMENT)
	{
		JsonbValue *vectors = getIthJsonbValueFromContainer(&envelope.data->root,
															0);

		take_vector(vectors->val.string.val, vectors->val.string.len,
					settings->vector_dimension, secret, result);
	}
	else
		result->data = envelope.data;
}

/*
 * Complete the result of a request that was abandoned.  The caller must
 * already have set the status and detail.
 */
void
hrflow_response_set_abandoned(const HrflowReply *reply, HrflowResult *result)
{
	result->is_link = HRFLOW_IS_LINK(reply->target);
	result->http_status = 0;
	result->was_sent = reply->was_sent;
	result->sent_at = reply->sent_at;
}

/*
 * Return the status for an HTTP error from a link's host, if
 * hrflow_s3_read_error() has not determined it.  A 403 with an error code does
 * not mean that the link has expired, because hrflow_s3_read_error() would
 * have recognized that error.
 */
static HrflowStatus
classify_link_error(int http_status, bool has_code)
{
	switch (http_status)
	{
		case 403:
			return has_code ? HRFLOW_HTTP_ERROR : HRFLOW_LINK_EXPIRED;
		case 404:
			return HRFLOW_NO_VECTOR;
		case 408:
			return HRFLOW_TIMEOUT;
		case 429:
			return HRFLOW_RATE_LIMITED;
	}
	return http_status >= 300 && http_status < 400 ? HRFLOW_INVALID_REPLY :
		HRFLOW_HTTP_ERROR;
}

/*
 * Interpret a reply from a link's host.  For an HTTP error, the detail
 * contains nothing from the body except the error code, because the rest of
 * the body may repeat secrets from the link.
 */
void
hrflow_response_parse_vector(const HrflowReply *reply, HrflowResult *result)
{
	int			status = reply->http_status;
	char	   *code;

	memset(result, 0, sizeof(*result));
	result->is_link = true;
	result->http_status = status;

	if (reply->status != HRFLOW_OK)
	{
		copy_failure(reply, "", result);
		return;
	}
	if (is_success(status))
	{
		take_vector(reply->body, reply->length, 0, "", result);
		return;
	}

	result->transient = status == 408 || status == 429 || status >= 500;
	code = hrflow_s3_read_error(reply->body, reply->length, &result->status,
								&result->transient);
	if (result->status == HRFLOW_OK)
		result->status = classify_link_error(status, code != NULL);
	result->detail = psprintf("The link's host answered HTTP %d%s%s%s.", status,
							  code != NULL ? ", code " : "",
							  code != NULL ? code : "",
							  result->status == HRFLOW_INVALID_REPLY ?
							  "; redirects are not followed" : "");
}
