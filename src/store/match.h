/*-------------------------------------------------------------------------
 *
 * match.h
 *		Data structures and functions for ranking the profiles of a store.
 *
 * match.c has the SQL functions and chooses how to search: exact.c compares
 * every vector, and index.c scans an index of pgvector.  best.c keeps the best
 * matches, and stream.c executes queries.  recall.c compares the results of an
 * index with those of an exact search, and pairs.c ranks one store for every
 * vector of another.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_MATCH_H
#define HRFLOW_MATCH_H

#include "postgres.h"

#include "ask/ask.h"
#include "fmgr.h"
#include "store/store.h"
#include "utils/hsearch.h"

/* Maximum number of rows that one call returns. */
#define HRFLOW_MAX_K 10000

/*
 * Arguments of hrflow_match(), in order.  In other functions that rank, most
 * of these arguments have the same position.
 */
enum
{
	HRFLOW_MATCH_STORE,
	HRFLOW_MATCH_QUERY,
	HRFLOW_MATCH_K,
	HRFLOW_MATCH_SECTION,
	HRFLOW_MATCH_PROFILES,
	HRFLOW_MATCH_SOURCE_ID
};

/*
 * A vector that was found, and its similarity to the query.
 */
typedef struct HrflowMatch
{
	/* Key of HrflowBest's hash table; these two must be first. */
	char	   *source_id;
	char	   *identifier;

	char	   *section;
	int			item;
	double		similarity;
	double	   *parts;			/* addends of a weighted sum, one per section,
								 * or NaN where the profile lacks the section;
								 * NULL: not a weighted sum */
} HrflowMatch;

/*
 * The k best matches so far, at most one per profile.
 */
typedef struct HrflowBest
{
	MemoryContext context;		/* holds the matches and their strings */
	int			k;
	int			n;
	int			nparts;			/* number of parts of each match */
	HrflowMatch **matches;		/* array of n matches, best first */
	HTAB	   *by_profile;		/* hash table of the matches, by profile */
} HrflowBest;

/*
 * A search: the query, and the vectors to be compared with it.
 */
typedef struct HrflowSearch
{
	const HrflowStore *store;
	const char *function;		/* qualified name of
								 * hrflow_vector_similarity() */
	ArrayType  *query;			/* one-dimensional, without nulls, not zero */
	const double *elements;		/* elements of the query */
	int			dimension;		/* number of elements */
	double		norm;			/* length of the query */

	/* Restrictions. */
	text	   *source_id;		/* search only this source; NULL: all */
	ArrayType  *profiles;		/* search only these identifiers, a text[];
								 * NULL: all */
	int			nprofiles;		/* number of elements of "profiles" */
	ArrayType  *sources;		/* sources that have vectors, a text[]; NULL:
								 * not looked up, or too many */
	bool		knows_sources;	/* have the sources been looked up? */

	bool		has_reported;	/* have dead tuples been reported? */
} HrflowSearch;

/*
 * State of a reader of TOASTed values; see toast.c.
 */
typedef struct HrflowToast HrflowToast;

/*
 * A callback that receives a match, whose strings live until it returns.
 */
typedef void (*HrflowVisitor) (void *arg, const HrflowMatch *match);

/*
 * A callback that receives a row of a query.  Returns false to end the query.
 */
typedef bool (*HrflowTake) (void *arg, TupleTableSlot *slot);

/*
 * An index of pgvector that can be used for searching a section.
 */
typedef struct HrflowIndex
{
	char	   *name;			/* quoted and qualified */
	char	   *expression;		/* indexed expression, as SQL */
	char	   *type;			/* type of the expression */
	char	   *schema;			/* schema of pgvector, quoted */
	Oid			method;			/* OID of the access method */
	bool		is_hnsw;		/* is the access method hnsw?  If not, it is
								 * ivfflat */
	int			lists;			/* the option "lists" of ivfflat; 0: default */
	double		tuples;			/* estimated number of vectors in the index */
} HrflowIndex;

/*
 * Prefetch the row that will most likely be read next into the processor's
 * cache; otherwise a search waits for memory between two rows.  A heap page is
 * filled from its end, so the next row is in front of the current value, and
 * of about the same size.  If that guess is wrong, the prefetch is merely
 * useless.
 */
static inline void
hrflow_prefetch_next(const struct varlena *value)
{
#ifdef __GNUC__
	const char *end = (const char *) value;
	const char *start = end - Min(VARSIZE_ANY(value), BLCKSZ) - 64;

	/* The cache lines of most processors have 64 bytes. */
	for (const char *line = start; line < end; line += 64)
		__builtin_prefetch(line);
#endif
}

/* in match.c */
extern int	hrflow_match_get_number(FunctionCallInfo fcinfo, int argno,
									const char *name);
extern bool hrflow_match_lacks_argument(FunctionCallInfo fcinfo);
extern HrflowSearch *hrflow_match_make_search(FunctionCallInfo fcinfo,
											  const HrflowStore *store);
extern void hrflow_match_set_query(HrflowSearch *search, ArrayType *query);
extern void hrflow_match_restrict_search(FunctionCallInfo fcinfo,
										 HrflowSearch *search);
extern void hrflow_match_search_section(HrflowSearch *search,
										const char *section,
										HrflowBest *best);

/* in best.c */
extern HrflowBest *hrflow_best_make(int k, int nparts);
extern bool hrflow_best_wants(const HrflowBest *best, double similarity);
extern void hrflow_best_keep(HrflowBest *best, const HrflowMatch *match);

/* in stream.c */
extern void hrflow_stream(const char *sql, const HrflowParameters *parameters,
						  HrflowTake take, void *arg);
extern void hrflow_stream_read(const TupleTableSlot *slot, HrflowMatch *match);

/* in toast.c */
extern HrflowToast *hrflow_toast_begin(void);
extern struct varlena *hrflow_toast_read(HrflowToast *toast, Datum datum);
extern void hrflow_toast_end(HrflowToast *toast);

/* in exact.c */
extern bool hrflow_exact_compare(const HrflowSearch *search,
								 struct varlena *vector, double *similarity);
extern void hrflow_exact_search(HrflowSearch *search, const char *section,
								HrflowBest *best);
extern void hrflow_exact_visit(HrflowSearch *search, ArrayType *sections,
							   const HrflowBest *candidates,
							   HrflowVisitor visitor, void *arg);
extern int	hrflow_exact_other_dimension(HrflowSearch *search,
										 ArrayType *sections);

/* in index.c */
extern HrflowIndex *hrflow_index_find(const HrflowSearch *search,
									  const char *section);
extern bool hrflow_index_is_cheaper(const HrflowSearch *search,
									const HrflowIndex *index,
									const char *section, int k);
extern void hrflow_index_search(const HrflowSearch *search,
								const HrflowIndex *index,
								const char *section, HrflowBest *best);
extern int	hrflow_index_dimension(const HrflowStore *store,
								   const char *section);

#endif							/* HRFLOW_MATCH_H */
