/*-------------------------------------------------------------------------
 *
 * links.c
 *		Extracts the links from the API's replies, with the section and item of
 *		each link.
 *
 * The functions in this file are pure: their results depend only on their
 * arguments and the server encoding.  They do not raise errors about the
 * content of a reply.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

/*
 * Read a JSON number that is an index: a non-negative integer of at most 9
 * digits, which fits into an int.
 */
static bool
read_index(const JsonbValue *value, int *index)
{
	char	   *text;

	if (value->type != jbvNumeric)
		return false;
	text = DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(value->val.numeric)));
	if (strlen(text) > 9 || strspn(text, "0123456789") != strlen(text))
		return false;
	*index = atoi(text);
	return true;
}

/*
 * Return the index in the path of a link, .../SECTION/INDEX.hflw, or -1 if the
 * path does not have this form or the index has more than 9 digits.
 */
static int
index_in_path(const char *url, const char *section)
{
	size_t		path_length = strcspn(url, "?#");
	size_t		section_length = strlen(section);
	const char *end = url + path_length;
	const char *p;
	int			index = 0;
	int			digits = 0;

	if (path_length < section_length + 8 || memcmp(end - 5, ".hflw", 5) != 0)
		return -1;
	p = end - 5;
	while (p > url && p[-1] >= '0' && p[-1] <= '9')
		p--;
	for (const char *q = p; q < end - 5; q++)
	{
		if (++digits > 9)
			return -1;
		index = index * 10 + (*q - '0');
	}
	if (digits == 0 || p - url < section_length + 2 ||
		p[-1] != '/' || p[-2 - (ssize_t) section_length] != '/' ||
		memcmp(p - 1 - section_length, section, section_length) != 0)
		return -1;
	return index;
}

/*
 * Describes how "fields" requested a section.
 */
typedef struct SectionAsked
{
	char	   *name;
	bool		as_list;		/* was the section requested by a list,
								 * whether or not its elements are indexes? */
	int		   *indexes;		/* the elements of the list, palloc'd; NULL if
								 * there is no list, or if any of them is not
								 * an index */
	int			nindexes;
} SectionAsked;

/*
 * Look up how "fields", which may be NULL, requested a section.
 */
static void
find_asked(Jsonb *fields, const JsonbValue *key, SectionAsked *asked)
{
	JsonbValue	value;
	JsonbValue	element;
	JsonbIterator *it;
	JsonbIteratorToken token;
	int			n = 0;

	memset(asked, 0, sizeof(*asked));
	asked->name = pnstrdup(key->val.string.val, key->val.string.len);

	if (fields == NULL ||
		getKeyJsonValueFromContainer(&fields->root, key->val.string.val,
									 key->val.string.len, &value) == NULL ||
		value.type != jbvBinary ||
		!JsonContainerIsArray(value.val.binary.data))
		return;

	asked->as_list = true;
	asked->indexes = palloc(sizeof(int) *
							(JsonContainerSize(value.val.binary.data) + 1));
	it = JsonbIteratorInit(value.val.binary.data);
	while ((token = JsonbIteratorNext(&it, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (!read_index(&element, &asked->indexes[n++]))
		{
			asked->indexes = NULL;
			return;
		}
	}
	asked->nindexes = n;
}

/*
 * Rule for determining the item of each link in a section.
 */
typedef enum ItemRule
{
	ITEM_AS_ASKED,				/* the requested index at the same position */
	ITEM_OF_PATH,				/* the index in the path of the link */
	ITEM_BY_PLACE				/* the position of the link in the list */
} ItemRule;

/*
 * Choose the rule for a list of "count" elements.  Use the requested indexes
 * if their number is "count", and no path of a link contains a different
 * index: the API is not documented to preserve the order of the indexes.
 * Otherwise use the paths if every path contains an index, or the positions if
 * no path does and the section was not requested by a list.  Returns false if
 * no rule applies.
 */
static bool
choose_rule(const SectionAsked *asked, JsonbContainer *list, int count,
			ItemRule *rule)
{
	bool		as_asked = asked->indexes != NULL && asked->nindexes == count;
	int			nlinks = 0;
	int			npaths = 0;

	for (int i = 0; i < count; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(list, i);
		int			item;

		if (value->type != jbvString)
			continue;
		item = index_in_path(pnstrdup(value->val.string.val,
									  value->val.string.len), asked->name);
		nlinks++;
		npaths += item >= 0;
		if (as_asked && item >= 0 && item != asked->indexes[i])
			as_asked = false;
	}
	*rule = as_asked ? ITEM_AS_ASKED :
		npaths > 0 ? ITEM_OF_PATH : ITEM_BY_PLACE;
	if (as_asked)
		return true;
	return npaths == nlinks || (npaths == 0 && !asked->as_list);
}

/*
 * Add a link, with its item determined by the given rule.  Returns false if
 * the path names an item for which the section already has a link: a missing
 * vector is better than a vector with the wrong item.
 */
static bool
add_link(List **links, const SectionAsked *asked, const JsonbValue *value,
		 ItemRule rule, int place)
{
	HrflowLink *link = palloc(sizeof(HrflowLink));
	ListCell   *cell;

	link->section = asked->name;
	link->url = pnstrdup(value->val.string.val, value->val.string.len);
	link->item = rule == ITEM_AS_ASKED ? asked->indexes[place] :
		rule == ITEM_OF_PATH ? index_in_path(link->url, asked->name) : place;
	foreach(cell, *links)
	{
		HrflowLink *other = lfirst(cell);

		if (rule == ITEM_OF_PATH && other->section == link->section &&
			other->item == link->item)
			return false;
	}
	*links = lappend(*links, link);
	return true;
}

/*
 * Add the link of a section whose value is a single link.  The item is the
 * index in the path of the link; or else the only requested index; or else 0,
 * if the section was not requested by a list.  Returns false if the item
 * cannot be determined.
 */
static bool
add_single_link(List **links, const SectionAsked *asked,
				const JsonbValue *value)
{
	char	   *url = pnstrdup(value->val.string.val, value->val.string.len);

	if (index_in_path(url, asked->name) >= 0)
		return add_link(links, asked, value, ITEM_OF_PATH, 0);
	if (asked->indexes != NULL && asked->nindexes == 1)
		return add_link(links, asked, value, ITEM_AS_ASKED, 0);
	return !asked->as_list && add_link(links, asked, value, ITEM_BY_PLACE, 0);
}

/*
 * Add the links of a section, whose value is a link, a list of links, or null
 * if there is no vector.  Null elements of a list are skipped, but their
 * positions are counted.  Returns NULL, or an error detail in which %s is to
 * be replaced by the name of the section.
 */
static const char *
add_section(List **links, const SectionAsked *asked, const JsonbValue *value)
{
	static const char unknown_item[] = "The items of the links in section \"%s\" of the reply cannot be determined.";
	static const char not_links[] = "The value of section \"%s\" of the reply is neither a link nor a list of links.";
	static const char too_many[] = "The links of section \"%s\" exceed the maximum number of links in a reply.";
	JsonbContainer *list;
	ItemRule	rule;
	int			count;

	if (value->type == jbvNull)
		return NULL;
	if (list_length(*links) >= HRFLOW_MAX_LINKS)
		return too_many;
	if (value->type == jbvString)
		return add_single_link(links, asked, value) ? NULL : unknown_item;
	if (value->type != jbvBinary ||
		!JsonContainerIsArray(value->val.binary.data))
		return not_links;

	list = value->val.binary.data;
	count = JsonContainerSize(list);
	if (count + list_length(*links) > HRFLOW_MAX_LINKS)
		return too_many;
	if (!choose_rule(asked, list, count, &rule))
		return unknown_item;
	for (int place = 0; place < count; place++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(list, place);

		if (element->type == jbvNull)
			continue;
		if (element->type != jbvString)
			return not_links;
		if (!add_link(links, asked, element, rule, place))
			return unknown_item;
	}
	return NULL;
}

/*
 * Extract the links in the data of a reply, as a list of HrflowLink.  The data
 * of a job is a link, for which we use the section name "job".  "fields" is
 * the parameter that was sent, or NULL.  "secret" is the API key, which is
 * masked in *detail.
 *
 * If "fields" lists indexes of a section, and the reply contains an element
 * for each, the item of a link is the requested index at the same position.
 * If the numbers of indexes and elements differ, or if the path of a link
 * contains a different index, the items are taken from the paths.
 *
 * If a section was requested as a whole, the items are also taken from the
 * paths, because some items may have no link.  If the paths contain no
 * indexes, the item of each link is its position, counted from 0.
 *
 * Returns false and sets *detail if the data is not valid, there are too many
 * links, or the item of a link cannot be determined.
 */
bool
hrflow_links_collect(Jsonb *data, Jsonb *fields, const char *secret,
					 List **links, char **detail)
{
	JsonbIterator *it = JsonbIteratorInit(&data->root);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	*links = NIL;
	if (JB_ROOT_IS_SCALAR(data))
	{
		SectionAsked job = {.name = pstrdup("job")};

		return add_link(links, &job,
						getIthJsonbValueFromContainer(&data->root, 0),
						ITEM_BY_PLACE, 0);
	}
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		SectionAsked asked;
		const char *problem;

		if (token != WJB_KEY)
			continue;
		find_asked(fields, &key, &asked);
		(void) JsonbIteratorNext(&it, &value, true);
		problem = add_section(links, &asked, &value);
		if (problem != NULL)
		{
			*detail = psprintf(problem,
							   hrflow_response_scrub(asked.name, secret));
			return false;
		}
	}
	return true;
}
