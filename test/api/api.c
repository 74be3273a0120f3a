/*
 * api.c
 *		The endpoints and their answers.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "standin.h"

/* How "fields" requests a section. */
typedef struct Asked
{
	bool		asked;
	bool		listed;
	int			items[64];
	int			nitems;
} Asked;

enum
{
	PROFILE, SKILLS, INTERESTS, EXPERIENCES, EDUCATIONS, NSECTIONS
};

static const char *const section_names[] = {
	"profile", "skills", "interests", "experiences", "educations"
};

const char *
request_parameter(const Request *request, const char *name)
{
	for (int i = 0; i < request->nparameters; i++)
	{
		if (strcmp(request->parameters[i].name, name) == 0)
			return request->parameters[i].value;
	}
	return NULL;
}

/*
 * Return the profile in a path of the store, decoded, in a thread-local
 * buffer.
 */
static const char *
profile_in_path(const char *path)
{
	static __thread char buffer[16384];
	const char *p = strstr(path, "/profiles/");
	size_t		n = 0;

	p = p ? p + 10 : strstr(path, "/jobs/");
	if (p == NULL)
		return NULL;
	if (strncmp(p, "/jobs/", 6) == 0)
		p += 6;
	for (; *p && *p != '/' && n < sizeof(buffer) - 1; p++)
	{
		unsigned	byte;

		if (*p == '%' && sscanf(p + 1, "%2x", &byte) == 1)
		{
			buffer[n++] = (char) byte;
			p += 2;
		}
		else
			buffer[n++] = *p;
	}
	buffer[n] = '\0';
	return buffer;
}

/*
 * Return what determines the fault: the first identifier, or the text.
 */
const char *
identifier_of(const Request *request)
{
	static const char *const names[] = {
		"profile_id", "key", "profile_reference", "reference",
		"profile_email", "email", "job_id", "job_reference"
	};

	if (strncmp(request->path, "/v1/", 4) != 0)
		return profile_in_path(request->path);
	if (request->text)
		return request->text;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		const char *value = request_parameter(request, names[i]);

		if (value)
			return value;
	}
	return NULL;
}

static void
add_json_text(Buffer *out, const char *text)
{
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
	{
		if (*p < ' ' || *p == '"' || *p == '\\')
			buffer_printf(out, "\\u%04x", *p);
		else
			buffer_add(out, p, 1);
	}
}

static enum MHD_Result
answer_envelope(Request *request, int status, int code, const char *message,
				const char *data)
{
	Buffer		out = {0};
	enum MHD_Result result;

	buffer_printf(&out, "{\"code\": %d, \"message\": \"", code);
	add_json_text(&out, message);
	buffer_add(&out, "\"", 1);
	if (data)
	{
		buffer_printf(&out, ", \"data\": ");
		buffer_add(&out, data, strlen(data));
	}
	buffer_add(&out, "}", 1);
	result = answer(request, status, "application/json", out.data, out.length);
	free(out.data);
	return result;
}

static enum MHD_Result
refuse(Request *request, int status, const char *message)
{
	return answer_envelope(request, status, status, message, NULL);
}

/*
 * ------------------------------------------------------------------------
 * Links
 * ------------------------------------------------------------------------
 */

static void
add_encoded(Buffer *out, const char *text)
{
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
	{
		if (isalnum(*p) || strchr("-._~", *p))
			buffer_add(out, p, 1);
		else
			buffer_printf(out, "%%%02X", *p);
	}
}

static void
add_signature(Buffer *out, const char *path, long expires)
{
	char		text[32];

	snprintf(text, sizeof(text), "%ld", expires);
	for (int i = 0; i < 4; i++)
		buffer_printf(out, "%016llx",
					  (unsigned long long) hash_text(path, hash_text(text, 11 + i)));
}

/*
 * Make a link in the documented form.  Its expiry is in X-Amz-Date and
 * X-Amz-Expires, as in real links, and once more as a number for our own use.
 */
static void
add_link(Buffer *out, const Request *request, const char *path)
{
	const char *proto = MHD_lookup_connection_value(request->connection,
													MHD_HEADER_KIND,
													"X-Forwarded-Proto");
	const char *host = MHD_lookup_connection_value(request->connection,
												   MHD_HEADER_KIND, "Host");
	time_t		now = time(NULL);
	long		expires = (long) now + options.link_ttl;
	struct tm	tm;
	char		date[32];
	size_t		start = out->length;

	gmtime_r(&now, &tm);
	strftime(date, sizeof(date), "%Y%m%dT%H%M%SZ", &tm);
	if (options.link_base)
		buffer_printf(out, "%s", options.link_base);
	else
		buffer_printf(out, "%s://%s", proto ? proto :
					  request->https ? "https" : "http", host ? host : "localhost");
	buffer_add(out, path, strlen(path));
	buffer_printf(out, "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ASIASTANDIN%%2F%.8s%%2Feu-west-1%%2Fs3%%2Faws4_request"
				  "&X-Amz-Date=%s&X-Amz-Expires=%d&X-Amz-SignedHeaders=host&x-expires=%ld&X-Amz-Signature=",
				  date, date, options.link_ttl, expires);
	add_signature(out, path, expires);
	buffer_printf(out, "&X-Amz-Security-Token=");
	while (out->length - start < 1700)
		buffer_add(out, "IQoJb3JpZ2luX2VjENz", 19);
}

static void
add_profile_link(Buffer *out, const Request *request, const char *source,
				 const char *profile, int section, int item)
{
	Buffer		path = {0};

	buffer_add(out, "\"", 1);
	if (request->fault.opaque)
		buffer_printf(&path, "/opaque/%016llx/profiles/",
					  (unsigned long long) hash_text(profile, section * 100 + item));
	else
	{
		buffer_printf(&path, "/teams/stand-in/sources/");
		add_encoded(&path, source);
		buffer_printf(&path, "/profiles/");
	}
	add_encoded(&path, profile);
	if (request->fault.opaque)
		buffer_printf(&path, "/%d-%d.bin", section, item);
	else if (section >= EXPERIENCES)
		buffer_printf(&path, "/embedding/vector/%s/%d.hflw",
					  section_names[section], item);
	else
		buffer_printf(&path, "/embedding/vector/%s.hflw",
					  section_names[section]);
	add_link(out, request, path.data);
	buffer_add(out, "\"", 1);
	free(path.data);
}

/*
 * ------------------------------------------------------------------------
 * "fields"
 * ------------------------------------------------------------------------
 */

static const char *
skip_space(const char *p)
{
	while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')
		p++;
	return p;
}

/*
 * Read a list of indexes, which may be strings.  Returns NULL if it is not
 * JSON.
 */
static const char *
parse_items(const char *p, Asked *asked, bool *unknown)
{
	asked->asked = asked->listed = true;
	p = skip_space(p + 1);
	while (*p != ']')
	{
		bool		quoted = *p == '"';
		char	   *end;

		if (quoted)
			p++;
		if (!isdigit((unsigned char) *p))
		{
			*unknown = true;
			if (!quoted)
				return NULL;
			end = (char *) (uintptr_t) strchr(p, '"');
		}
		else if (asked->nitems < 64)
			asked->items[asked->nitems++] = (int) strtol(p, &end, 10);
		else
			return NULL;
		if (end == NULL)
			return NULL;
		p = end + (quoted && *end == '"');
		p = skip_space(p);
		if (*p == ',')
			p = skip_space(p + 1);
		else if (*p != ']')
			return NULL;
	}
	return p + 1;
}

/*
 * Read "fields".  Returns NULL, or what is wrong with it.
 */
static const char *
parse_fields(const char *p, Asked *asked)
{
	static const char invalid[] = "Invalid fields";
	bool		unknown = false;

	p = skip_space(p);
	if (*p++ != '{')
		return invalid;
	p = skip_space(p);
	while (*p != '}')
	{
		size_t		length;
		int			section;

		if (*p++ != '"')
			return invalid;
		length = strcspn(p, "\"");
		for (section = 0; section < NSECTIONS; section++)
		{
			if (strlen(section_names[section]) == length &&
				strncmp(section_names[section], p, length) == 0)
				break;
		}
		p += length;
		if (section == NSECTIONS || *p++ != '"')
			return invalid;
		p = skip_space(p);
		if (*p++ != ':')
			return invalid;
		p = skip_space(p);
		if (*p == '[')
		{
			p = parse_items(p, &asked[section], &unknown);
			if (p == NULL)
				return invalid;
		}
		else
		{
			length = strcspn(p, ",} \t\n");
			asked[section].asked = !(strncmp(p, "0", length) == 0 ||
									 strncmp(p, "false", length) == 0 ||
									 strncmp(p, "null", length) == 0);
			p += length;
		}
		p = skip_space(p);
		if (*p == ',')
			p = skip_space(p + 1);
		else if (*p != '}')
			return invalid;
	}
	if (*skip_space(p + 1) != '\0')
		return invalid;
	return unknown ? "Invalid key. File doesn't exist" : NULL;
}

/* Return the number of items of a profile in a section. */
static int
count_items(const char *profile, int section)
{
	return section < EXPERIENCES ? 1 : 1 + (int) (hash_text(profile, section) % 4);
}

/*
 * Make the data of an answer.  Returns NULL, or what is wrong with the
 * request.
 */
static const char *
make_data(const Request *request, const char *source, const char *profile,
		  const char *fields, Buffer *out)
{
	static const char missing[] = "Invalid key. File doesn't exist";
	Asked		asked[NSECTIONS] = {0};
	bool		any = false;
	const char *problem = fields ? parse_fields(fields, asked) : NULL;

	if (problem)
		return problem;
	for (int s = 0; s < NSECTIONS; s++)
		any |= asked[s].asked;
	if (!any && (fields == NULL || *skip_space(skip_space(fields) + 1) == '}'))
	{
		for (int s = 0; s < NSECTIONS; s++)
			asked[s].asked = true;
		if (strncmp(profile, "novector", 8) == 0)
			asked[SKILLS].asked = false;
	}

	buffer_add(out, "{", 1);
	for (int s = 0; s < NSECTIONS; s++)
	{
		int			n = asked[s].listed ? asked[s].nitems : count_items(profile, s);
		int			first = request->fault.drop && s >= EXPERIENCES ? 1 : 0;

		if (!asked[s].asked)
			continue;
		if (s == SKILLS && strncmp(profile, "novector", 8) == 0)
			return missing;
		if (out->length > 1)
			buffer_add(out, ", ", 2);
		buffer_printf(out, "\"%s\": ", section_names[s]);
		if (s < EXPERIENCES)
		{
			add_profile_link(out, request, source, profile, s, 0);
			continue;
		}
		buffer_add(out, "[", 1);
		for (int i = 0; i < n; i++)
		{
			int			item = asked[s].listed ? asked[s].items[i] : i;

			if (item >= count_items(profile, s))
				return missing;
			if (i < first)
				continue;
			if (i > first)
				buffer_add(out, ", ", 2);
			add_profile_link(out, request, source, profile, s, item);
		}
		buffer_add(out, "]", 1);
	}
	buffer_add(out, "}", 1);
	return NULL;
}

/*
 * ------------------------------------------------------------------------
 * Faults of the body
 * ------------------------------------------------------------------------
 */

static const char html[] = "<html>\n<head><title>502 Bad Gateway</title></head>\n<body>\n<center><h1>502 Bad Gateway</h1></center>\n</body>\n</html>\n";

static const char bad_utf8[] = "{\"code\": 200, \"data\": {\"x\": \"\xff\xfe\"}}";
static const char with_nul[] = "{\"code\": 200, \"data\": {\"x\": \"\0\"}}";

static enum MHD_Result
answer_deep(Request *request, long depth)
{
	Buffer		out = {0};
	enum MHD_Result result;

	buffer_printf(&out, "{\"code\": 200, \"message\": \"deep\", \"data\": {\"x\": ");
	for (long i = 2; i < depth; i++)
		buffer_add(&out, "[", 1);
	for (long i = 2; i < depth; i++)
		buffer_add(&out, "]", 1);
	buffer_printf(&out, "%s}}", depth <= 2 ? "1" : "");
	result = answer(request, 200, "application/json", out.data, out.length);
	free(out.data);
	return result;
}

/*
 * Answer as the fault requires; *done is set to whether it requires anything.
 */
static enum MHD_Result
answer_fault(Request *request, const char *key, bool *done)
{
	const Fault *fault = &request->fault;
	int			status = fault->status ? (int) fault->status : 200;
	char		message[1024];

	*done = true;
	if (fault->bad)
		return refuse(request, 400, "Invalid fault");
	if (fault->redirected)
		return answer(request, fault->status ? status : 302, "text/html", "", 0);
	if (fault->empty)
		return answer(request, status, "application/json", "", 0);
	if (fault->html)
		return answer(request, fault->status ? status : 502, "text/html",
					  html, sizeof(html) - 1);
	if (fault->body)
		return answer(request, status, "application/json", fault->body,
					  fault->body_length);
	if (fault->big > 0 || fault->bomb > 0)
		return answer(request, status, "application/json", "", 0);
	if (fault->deep > 0)
		return answer_deep(request, fault->deep);
	if (fault->badutf8)
		return answer(request, status, "application/json", bad_utf8,
					  sizeof(bad_utf8) - 1);
	if (fault->nul)
		return answer(request, status, "application/json", with_nul,
					  sizeof(with_nul) - 1);
	if (fault->data)
		return answer_envelope(request, status, status, "Profile embedding",
							   fault->data);
	if (fault->echo || fault->message || fault->code ||
		(fault->status && (status < 200 || status >= 300)))
	{
		int			code = fault->code ? (int) fault->code : status;

		if (fault->echo)
			snprintf(message, sizeof(message),
					 "Unauthorized. Invalid secret key: %s ", key);
		else
			snprintf(message, sizeof(message), "%s",
					 fault->message ? fault->message : "stand-in fault");
		return answer_envelope(request, status, code, message,
							   code >= 200 && code < 300 && status < 400 ? "{}" : NULL);
	}
	*done = false;
	return MHD_YES;
}

/*
 * ------------------------------------------------------------------------
 * The API
 * ------------------------------------------------------------------------
 */

/* Is the key valid?  If not, answer the request and set *result. */
static bool
authorize(Request *request, const char *key, bool key_dialect,
		  enum MHD_Result *result)
{
	char		message[1024];
	bool		good = false;

	for (int i = 0; i < options.nkeys; i++)
		good |= strcmp(options.keys[i], key) == 0;
	if (!good || (strncmp(key, "askw_", 5) == 0 &&
				  strcmp(request->method, "GET") == 0))
	{
		snprintf(message, sizeof(message),
				 "Unauthorized. Invalid secret key: %s ", key);
		*result = refuse(request, 401, message);
		return false;
	}
	if (key_dialect &&
		MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND,
									"X-USER-EMAIL") == NULL)
	{
		*result = refuse(request, 401, "Unauthorized. Invalid user email");
		return false;
	}
	return true;
}

/* Return a message about a parameter that is unknown or repeated, or NULL. */
static const char *
check_parameters(const Request *request, const char *const *known, char *message,
				 size_t size)
{
	for (int i = 0; i < request->nparameters; i++)
	{
		const char *name = request->parameters[i].name;
		bool		good = false;

		for (const char *const *k = known; *k; k++)
			good |= strcmp(*k, name) == 0;
		for (int j = 0; j < i; j++)
			good &= strcmp(request->parameters[j].name, name) != 0;
		if (!good)
		{
			snprintf(message, size, "Unexpected parameter %s", name);
			return message;
		}
	}
	return NULL;
}

/*
 * Return the id of the profile, as given or derived from its reference or
 * e-mail address, whose occupation it contains.
 */
static void
resolve_profile(const Request *request, bool key_dialect, char *id, size_t size)
{
	const char *given = request_parameter(request, key_dialect ? "key" : "profile_id");
	const char *other = identifier_of(request);

	if (given == NULL && strncmp(other, "fault:", 6) != 0)
		snprintf(id, size, "%016llx%016llx%08llx-%s",
				 (unsigned long long) hash_text(other, 21),
				 (unsigned long long) hash_text(other, 22),
				 (unsigned long long) hash_text(other, 23) >> 32,
				 occupation_of(other));
	else
		snprintf(id, size, "%s", given ? given : other);
}

static enum MHD_Result
profile_embedding(Request *request, const char *key)
{
	static const char *const id_names[] = {
		"source_id", "profile_id", "profile_reference", "profile_email",
		"fields", NULL
	};
	static const char *const key_names[] = {
		"source_key", "key", "reference", "email", "profile_email", "fields",
		NULL
	};
	bool		key_dialect = request_parameter(request, "source_key") != NULL;
	const char *source = request_parameter(request,
										   key_dialect ? "source_key" : "source_id");
	const char *identifier = identifier_of(request);
	const char *problem;
	char		message[256];
	char	   *id;
	Buffer		data = {0};
	enum MHD_Result result;
	bool		done;

	if (!authorize(request, key, key_dialect, &result))
		return result;
	problem = check_parameters(request, key_dialect ? key_names : id_names,
							   message, sizeof(message));
	if (problem)
		return refuse(request, 400, problem);
	if (source == NULL || *source == '\0' || strncmp(source, "unknown", 7) == 0)
		return refuse(request, 400, "Invalid source array");
	if (identifier == NULL || *identifier == '\0' ||
		strncmp(identifier, "missing", 7) == 0)
		return refuse(request, 400, "Invalid profile array");

	result = answer_fault(request, key, &done);
	if (done)
		return result;

	id = malloc(strlen(identifier) + 64);
	resolve_profile(request, key_dialect, id, strlen(identifier) + 64);
	problem = make_data(request, source, id, request_parameter(request, "fields"),
						&data);
	if (problem)
		result = refuse(request, 400, problem);
	else if (request->fault.truncated)
	{
		Buffer		out = {0};

		buffer_printf(&out, "{\"code\": 200, \"message\": \"Profile embedding\", \"data\": ");
		buffer_add(&out, data.data, data.length / 2);
		result = answer(request, 200, "application/json", out.data, out.length);
		free(out.data);
	}
	else
		result = answer_envelope(request, request->fault.status ? (int) request->fault.status : 200,
								 200, "Profile embedding", data.data);
	free(data.data);
	free(id);
	return result;
}

static enum MHD_Result
job_embedding(Request *request, const char *key)
{
	static const char *const id_names[] = {
		"job_id", "job_reference", "board_id", NULL
	};
	static const char *const key_names[] = {
		"board_key", "key", "reference", NULL
	};
	bool		key_dialect = request_parameter(request, "board_key") != NULL ||
		request_parameter(request, "key") != NULL ||
		request_parameter(request, "reference") != NULL;
	const char *board = request_parameter(request,
										  key_dialect ? "board_key" : "board_id");
	const char *job = identifier_of(request);
	const char *problem;
	char		message[256];
	enum MHD_Result result;
	Buffer		link = {0};
	Buffer		path = {0};
	bool		done;

	if (!authorize(request, key, key_dialect, &result))
		return result;
	problem = check_parameters(request, key_dialect ? key_names : id_names,
							   message, sizeof(message));
	if (problem)
		return refuse(request, 400, problem);
	if (board && (*board == '\0' || strncmp(board, "unknown", 7) == 0))
		return refuse(request, 400, "Invalid board array");
	if (job == NULL || *job == '\0' || strncmp(job, "missing", 7) == 0)
		return refuse(request, 400, "Invalid job array");
	result = answer_fault(request, key, &done);
	if (done)
		return result;
	buffer_printf(&path, "/teams/stand-in/boards/board/jobs/");
	add_encoded(&path, job);
	buffer_printf(&path, "/embedding/vector/job.hflw");
	buffer_add(&link, "\"", 1);
	add_link(&link, request, path.data);
	buffer_add(&link, "\"", 1);
	if (request->fault.truncated)
		link.data[link.length / 2] = '\0';
	result = answer_envelope(request, 200, 200, "Job embedding", link.data);
	free(link.data);
	free(path.data);
	return result;
}

static enum MHD_Result
text_embedding(Request *request, const char *key)
{
	enum MHD_Result result;
	const char *type;
	bool		done;
	float		vector[2048];
	Buffer		data = {0};
	Fault		json = {.encoding = (char *) "json"};

	if (!authorize(request, key, false, &result))
		return result;
	type = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND,
									   "Content-Type");
	if (strcmp(request->method, "POST") != 0 || type == NULL ||
		strcmp(type, "application/json") != 0 || request->text == NULL ||
		*request->text == '\0')
		return refuse(request, 422, "Invalid text");
	result = answer_fault(request, key, &done);
	if (done)
		return result;
	vector_make(request->text, "text", 0, vector);
	buffer_printf(&data, "[{\"embedding\": ");
	vector_encode(vector, &json, &data);
	buffer_printf(&data, "}]");
	if (request->fault.truncated)
		data.data[data.length / 2] = '\0';
	result = answer_envelope(request, 200, 200, "Text embedding", data.data);
	free(data.data);
	return result;
}

static enum MHD_Result
document_embedding(Request *request, const char *key)
{
	enum MHD_Result result;
	const char *type;
	char		message[256];
	bool		done;
	int			rows = 1;
	float	   *vectors;
	Buffer		data = {0};

	if (!authorize(request, key, false, &result))
		return result;
	type = MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND,
									   "Content-Type");
	if (strcmp(request->method, "POST") != 0 || type == NULL ||
		strcmp(type, "application/json") != 0 || request->text == NULL)
		return refuse(request, 422, "Invalid item");
	if (request->item_type == NULL ||
		(strcmp(request->item_type, "profile") != 0 &&
		 strcmp(request->item_type, "job") != 0))
	{
		snprintf(message, sizeof(message), "Invalid Item type: %s",
				 request->item_type ? request->item_type : "");
		return refuse(request, 400, message);
	}
	result = answer_fault(request, key, &done);
	if (done)
		return result;
	if (request->sequences)
		rows += (int) (hash_text(request->text, 9) % 4);
	vectors = malloc(rows * options.dim * sizeof(float));
	for (int i = 0; i < rows; i++)
		vector_make(request->text, "document", i, vectors + i * options.dim);
	buffer_printf(&data, "\"");
	vector_encode_base64(vectors, rows * options.dim, &data);
	buffer_printf(&data, "\"");
	if (request->fault.truncated)
		data.data[data.length / 2] = '\0';
	result = answer_envelope(request, 200, 200, "Embedding results", data.data);
	free(vectors);
	free(data.data);
	return result;
}

enum MHD_Result
api_handle(Request *request)
{
	const char *key = MHD_lookup_connection_value(request->connection,
												  MHD_HEADER_KIND, "X-API-KEY");
	const char *path = request->path + 3;
	enum MHD_Result result;
	bool		done;

	if (key == NULL)
		key = "";
	if (options.quota >= 0 && log_api_requests() > options.quota)
		return refuse(request, 402, "Quota exceeded");
	if (request->over_rate)
		return refuse(request, 429, "Too Many Requests");
	if (strcmp(path, "/profile/embedding") == 0)
		return profile_embedding(request, key);
	if (strcmp(path, "/job/embedding") == 0)
		return job_embedding(request, key);
	if (strcmp(path, "/text/embedding") == 0)
		return text_embedding(request, key);
	if (strcmp(path, "/document/embedding") == 0)
		return document_embedding(request, key);
	if (strcmp(path, "/auth") == 0)
	{
		if (!authorize(request, key, false, &result))
			return result;
		result = answer_fault(request, key, &done);
		if (done)
			return result;
		return answer_envelope(request, 200, 200, "Authentication succeeded",
							   "{\"team_name\": \"Stand-in\", \"team_subdomain\": \"stand-in\", \"api_key_permission\": \"read\"}");
	}
	return answer(request, 404, "text/html", html, sizeof(html) - 1);
}

/*
 * ------------------------------------------------------------------------
 * The store
 * ------------------------------------------------------------------------
 */

static const char expired_message[] = "Request has expired";

/*
 * Answer with an error in the format of Amazon S3.  It repeats the request,
 * which the client must not show, and includes the time of an expiry.
 */
static enum MHD_Result
answer_xml(Request *request, int status, const char *code, const char *message)
{
	Buffer		out = {0};
	enum MHD_Result result;

	buffer_printf(&out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message>",
				  code, message);
	if (strcmp(message, expired_message) == 0)
		buffer_printf(&out, "<X-Amz-Expires>%d</X-Amz-Expires><Expires>2020-04-27T10:30:10Z</Expires><ServerTime>2020-04-27T10:31:00Z</ServerTime>",
					  options.link_ttl);
	buffer_printf(&out, "<StringToSign>AWS4-HMAC-SHA256 GET ");
	add_json_text(&out, request->path);
	buffer_printf(&out, "</StringToSign><RequestId>656c76696e6727732072657175657374</RequestId></Error>");
	result = answer(request, status, "application/xml", out.data, out.length);
	free(out.data);
	return result;
}

/* Answer with the status and the error code that the fault specifies. */
static enum MHD_Result
answer_store_fault(Request *request)
{
	const Fault *fault = &request->fault;
	int			status = fault->status ? (int) fault->status : 403;
	const char *code = fault->error;

	if (code == NULL && status == 403)
		return answer_xml(request, 403, "AccessDenied", expired_message);
	if (code == NULL)
		code = status == 404 ? "NoSuchKey" :
			status == 503 ? "ServiceUnavailable" : "InternalError";
	return answer_xml(request, status, code, "stand-in fault");
}

/* Return the section and item in a path. */
static void
read_section(const char *path, char *section, size_t size, int *item)
{
	const char *p = strstr(path, "/embedding/vector/");
	int			number = 0;

	*item = 0;
	section[0] = '\0';
	if (p)
	{
		p += 18;
		snprintf(section, size, "%.*s", (int) strcspn(p, "/."), p);
		if (p[strcspn(p, "/.")] == '/')
			*item = atoi(p + strcspn(p, "/.") + 1);
	}
	else if ((p = strrchr(path, '/')) != NULL &&
			 sscanf(p + 1, "%d-%d.bin", &number, item) == 2 &&
			 number >= 0 && number < NSECTIONS)
		snprintf(section, size, "%s", section_names[number]);
}

/* Check the signature of a link.  Returns an error code, or NULL. */
static const char *
check_signature(const Request *request)
{
	const char *signature = request_parameter(request, "X-Amz-Signature");
	const char *expires = request_parameter(request, "x-expires");
	Buffer		expected = {0};
	bool		matches;

	if (signature == NULL || expires == NULL)
		return "AccessDenied";
	add_signature(&expected, request->path, atol(expires));
	matches = strcmp(expected.data, signature) == 0;
	free(expected.data);
	return matches ? NULL : "SignatureDoesNotMatch";
}

static bool
has_expired(const Request *request)
{
	return atol(request_parameter(request, "x-expires")) <= (long) time(NULL);
}

enum MHD_Result
store_handle(Request *request)
{
	const Fault *fault = &request->fault;
	const char *profile = profile_in_path(request->path);
	const char *problem;
	char		section[32];
	int			item;
	float		vector[2048];
	Buffer		out = {0};
	enum MHD_Result result;

	if (MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND,
									"X-API-KEY") != NULL ||
		MHD_lookup_connection_value(request->connection, MHD_HEADER_KIND,
									"X-USER-EMAIL") != NULL)
		return answer_xml(request, 400, "InvalidRequest",
						  "A key of another service was sent");
	if (profile == NULL)
		return answer_xml(request, 404, "NoSuchKey", "The specified key does not exist.");
	problem = check_signature(request);
	if (problem)
		return answer_xml(request, 403, problem, "The request was not signed by us.");
	if (has_expired(request))
		return answer_xml(request, 403, "AccessDenied", expired_message);
	if (fault->bad)
		return answer_xml(request, 400, "InvalidFault", "Invalid fault");
	if (fault->redirected)
		return answer(request, 302, "text/html", "", 0);
	if (fault->html)
		return answer(request, fault->status ? (int) fault->status : 502,
					  "text/html", html, sizeof(html) - 1);
	if (fault->body)
		return answer(request, fault->status ? (int) fault->status : 200,
					  "binary/octet-stream", fault->body, fault->body_length);
	if (fault->status || fault->error)
		return answer_store_fault(request);
	if (fault->empty)
		return answer(request, 200, "binary/octet-stream", "", 0);

	read_section(request->path, section, sizeof(section), &item);
	vector_make(profile, section, item, vector);
	vector_encode(vector, fault, &out);
	result = answer(request, 200, "binary/octet-stream", out.data, out.length);
	free(out.data);
	return result;
}

/* Return the floats of a vector, for tests to compare with. */
enum MHD_Result
vector_handle(Request *request)
{
	const char *profile = request_parameter(request, "profile");
	const char *section = request_parameter(request, "section");
	const char *item = request_parameter(request, "item");
	float		vector[2048];
	Buffer		out = {0};
	enum MHD_Result result;

	vector_make(profile ? profile : "", section ? section : "profile",
				item ? atoi(item) : 0, vector);
	vector_write(vector, &out);
	result = answer(request, 200, "binary/octet-stream", out.data, out.length);
	free(out.data);
	return result;
}
