/*
 * fault.c
 *		The faults that an identifier requests: "fault:name=value,name,...".
 *
 * Names that begin with "v." are for the store; the API ignores them.
 */
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

typedef enum Kind
{
	FLAG, NUMBER, TEXT, BYTES, IGNORED
} Kind;

typedef struct Name
{
	const char *name;
	Kind		kind;
	size_t		offset;
	size_t		length_offset;	/* size in bytes */
} Name;

#define AT(field) offsetof(Fault, field)

static const Name names[] = {
	{"id", IGNORED, 0, 0},
	{"own", FLAG, AT(own), 0},
	{"first", NUMBER, AT(first), 0},
	{"latency", NUMBER, AT(latency), 0},
	{"hold", NUMBER, AT(hold), 0},
	{"silent", FLAG, AT(silent), 0},
	{"status", NUMBER, AT(status), 0},
	{"code", NUMBER, AT(code), 0},
	{"message", TEXT, AT(message), 0},
	{"html", FLAG, AT(html), 0},
	{"empty", FLAG, AT(empty), 0},
	{"type", TEXT, AT(type), 0},
	{"notype", FLAG, AT(notype), 0},
	{"charset", FLAG, AT(charset), 0},
	{"truncated", FLAG, AT(truncated), 0},
	{"deep", NUMBER, AT(deep), 0},
	{"badutf8", FLAG, AT(badutf8), 0},
	{"nul", FLAG, AT(nul), 0},
	{"body", BYTES, AT(body), AT(body_length)},
	{"data", BYTES, AT(data), AT(data_length)},
	{"big", NUMBER, AT(big), 0},
	{"gzip", FLAG, AT(gzip), 0},
	{"coding", TEXT, AT(coding), 0},
	{"members", NUMBER, AT(members), 0},
	{"bomb", NUMBER, AT(bomb), 0},
	{"empty_blocks", NUMBER, AT(empty_blocks), 0},
	{"retry_after", NUMBER, AT(retry_after), 0},
	{"retry_after_date", NUMBER, AT(retry_after_date), 0},
	{"retry_after_text", TEXT, AT(retry_after_text), 0},
	{"left", TEXT, AT(left), 0},
	{"left_reset", TEXT, AT(left_reset), 0},
	{"left_reset_date", NUMBER, AT(left_reset_date), 0},
	{"close", FLAG, AT(close), 0},
	{"break", NUMBER, AT(break_at), 0},
	{"reset", FLAG, AT(reset), 0},
	{"stall", NUMBER, AT(stall), 0},
	{"slow", NUMBER, AT(slow), 0},
	{"drop", FLAG, AT(drop), 0},
	{"opaque", FLAG, AT(opaque), 0},
	{"echo", FLAG, AT(echo), 0},
	{"headers", NUMBER, AT(headers), 0},
	{"header_size", NUMBER, AT(header_size), 0},
	{"error", TEXT, AT(error), 0},
	{"dtype", TEXT, AT(dtype), 0},
	{"shape", TEXT, AT(shape), 0},
	{"encoding", TEXT, AT(encoding), 0},
	{"nan", FLAG, AT(nan), 0},
	{"short", FLAG, AT(cut), 0},
	{"trailing", FLAG, AT(trailing), 0}
};

/* Decode base64url without padding.  "out" must have room for the text. */
size_t
base64url_decode(const char *text, char *out)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	unsigned	bits = 0;
	int			nbits = 0;
	size_t		n = 0;

	for (; *text; text++)
	{
		const char *digit = strchr(digits, *text);

		if (digit == NULL)
			continue;
		bits = bits << 6 | (unsigned) (digit - digits);
		nbits += 6;
		if (nbits >= 8)
		{
			nbits -= 8;
			out[n++] = (char) (bits >> nbits & 0xff);
		}
	}
	out[n] = '\0';
	return n;
}

static void
set(Fault *fault, const Name *name, const char *value)
{
	char	   *field = (char *) fault + name->offset;

	switch (name->kind)
	{
		case FLAG:
			*(bool *) field = true;
			break;
		case NUMBER:
			*(long *) field = value ? atol(value) : 0;
			break;
		case TEXT:
			free(*(char **) field);
			*(char **) field = strdup(value ? value : "");
			break;
		case BYTES:
			free(*(char **) field);
			*(char **) field = malloc(value ? strlen(value) + 1 : 1);
			*(size_t *) ((char *) fault + name->length_offset) =
				base64url_decode(value ? value : "", *(char **) field);
			break;
		case IGNORED:
			break;
	}
}

static bool
set_by_name(Fault *fault, const char *name, const char *value)
{
	if (strcmp(name, "redirect") == 0)
	{
		fault->redirected = true;
		free(fault->redirect);
		fault->redirect = NULL;
		if (value)
		{
			fault->redirect = malloc(strlen(value) + 1);
			base64url_decode(value, fault->redirect);
		}
		return true;
	}
	if (strcmp(name, "order") == 0)
	{
		fault->fortran = value && *value == 'F';
		return true;
	}
	if (strcmp(name, "version") == 0)
	{
		fault->version = value ? atoi(value) : 1;
		return true;
	}
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		if (strcmp(names[i].name, name) == 0)
		{
			set(fault, &names[i], value);
			return true;
		}
	}
	return false;
}

/*
 * Parse the faults for the API, or those for the store.
 */
void
fault_parse(const char *identifier, bool store, Fault *fault)
{
	char	   *copy;
	char	   *save = NULL;

	memset(fault, 0, sizeof(*fault));
	fault->retry_after = fault->retry_after_date = LONG_MIN;
	fault->left_reset_date = LONG_MIN;
	fault->break_at = fault->stall = -1;
	fault->version = 1;
	if (identifier == NULL || strncmp(identifier, "fault:", 6) != 0)
		return;

	copy = strdup(identifier + 6);
	for (char *word = strtok_r(copy, ",", &save); word;
		 word = strtok_r(NULL, ",", &save))
	{
		char	   *value = strchr(word, '=');
		bool		for_store = strncmp(word, "v.", 2) == 0;

		if (value)
			*value++ = '\0';
		if (for_store != store && strcmp(word, "id") != 0)
			continue;
		fault->any = true;
		if (!set_by_name(fault, for_store ? word + 2 : word, value))
			fault->bad = true;
	}
	free(copy);
}

void
fault_free(Fault *fault)
{
	free(fault->message);
	free(fault->type);
	free(fault->body);
	free(fault->data);
	free(fault->redirect);
	free(fault->coding);
	free(fault->retry_after_text);
	free(fault->left);
	free(fault->left_reset);
	free(fault->error);
	free(fault->dtype);
	free(fault->shape);
	free(fault->encoding);
	memset(fault, 0, sizeof(*fault));
}

/*
 * Number of requests for an identifier, in a chained hash table.
 */
typedef struct Count
{
	struct Count *next;
	long		n;
	char		name[];
} Count;

#define NCHAINS 65536
static Count *chains[NCHAINS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/*
 * Count a request, and return whether it is one of the first.
 */
bool
fault_applies(const char *identifier, bool store, long first)
{
	Count	  **chain;
	Count	   *count;
	long		n;

	if (first <= 0)
		return true;
	pthread_mutex_lock(&mutex);
	chain = &chains[hash_text(identifier, store) % NCHAINS];
	for (count = *chain; count; count = count->next)
	{
		if (count->name[0] == (store ? 's' : 'a') &&
			strcmp(count->name + 1, identifier) == 0)
			break;
	}
	if (count == NULL)
	{
		count = calloc(1, sizeof(Count) + strlen(identifier) + 2);
		count->name[0] = store ? 's' : 'a';
		strcpy(count->name + 1, identifier);
		count->next = *chain;
		*chain = count;
	}
	n = ++count->n;
	pthread_mutex_unlock(&mutex);
	return n <= first;
}

void
fault_reset(void)
{
	pthread_mutex_lock(&mutex);
	for (int i = 0; i < NCHAINS; i++)
	{
		while (chains[i])
		{
			Count	   *next = chains[i]->next;

			free(chains[i]);
			chains[i] = next;
		}
	}
	pthread_mutex_unlock(&mutex);
}
