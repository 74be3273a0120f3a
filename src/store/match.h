/*-------------------------------------------------------------------------
 *
 * match.h
 *		Data structures and functions for ranking the profiles of a store.
 *
 * match.c has the SQL functions that search a store for one vector, and
 * chooses how to search: exact.c compares every vector in the scope of the
 * search, and index.c scans an index of pgvector.  best.c keeps the best
 * matches, stream.c executes queries, and toast.c reads TOASTed vectors.
 * recall.c compares the results of an index with those of an exact search, and
 * pairs.c ranks the profiles of a store for every vector of a section of
 * another store, or of the same store.
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

/*
 * Maximum value of the arguments "k" and "sample", except for
 * hrflow_match_all().
 */
#define HRFLOW_MAX_K 10000

/*
 * Argument numbers of hrflow_match().  hrflow_match_weighted() and
 * hrflow_match_recall() share some of these numbers.
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
 * A vector that was found, and its similarity to the query.  In a weighted
 * search, a profile that was found: "similarity" is the weighted sum, and
 * "section" and "item" identify the vector that contributes most to it.
 */
typedef struct HrflowMatch
{
	/* Key of HrflowBest.by_profile.  These two fields must be the first. */
	char	   *source_id;
	char	   *identifier;

	char	   *section;
	int			item;
	double		similarity;
	double	   *parts;			/* weighted similarities, one per section; NaN
								 * if the profile has no comparable vector of
								 * the section; NULL if the search is not
								 * weighted */
} HrflowMatch;

/*
 * The k best matches so far, at most one per profile.
 */
typedef struct HrflowBest
{
	MemoryContext context;		/* memory context of the matches and their
								 * strings */
	int			k;
	int			n;
	int			nparts;			/* number of elements of HrflowMatch.parts, or
								 * 0 if the search is not weighted */
	HrflowMatch **matches;		/* array of n matches, best first */
	HTAB	   *by_profile;		/* hash table of the matches, by profile */
} HrflowBest;

/*
 * A search: the query vector, and restrictions on the vectors with which it is
 * compared.
 */
typedef struct HrflowSearch
{
	const HrflowStore *store;
	Oid			function;		/* OID of hrflow_vector_similarity() */
	ArrayType  *query;			/* query vector: one-dimensional, without
								 * nulls, not zero */
	const double *elements;		/* elements of the query */
	int			dimension;		/* number of elements */
	double		norm;			/* length of the query */

	/* Restrictions on the vectors that are compared. */
	text	   *source_id;		/* source to search, or NULL to search all
								 * sources */
	ArrayType  *profiles;		/* identifiers to search for (text[]), or NULL
								 * to search for all profiles */
	int			nprofiles;		/* number of elements of "profiles" */
	ArrayType  *sources;		/* sources in which to look up "profiles"
								 * (text[]), or NULL if they have not been
								 * looked up yet or are too many */
	bool		knows_sources;	/* have the sources been looked up? */

	bool		has_reported;	/* have dead tuples been reported? */
} HrflowSearch;

/*
 * State of a reader of TOASTed values; see toast.c.
 */
typedef struct HrflowToast HrflowToast;

/*
 * A callback that receives a match.  The strings of the match live until the
 * callback returns.
 */
typedef void (*HrflowVisitor) (void *arg, const HrflowMatch *match);

/*
 * A callback that receives a row of a query.  Returns false to end the query.
 */
typedef bool (*HrflowTake) (void *arg, TupleTableSlot *slot);

/*
 * A pgvector index that can be used to search a section.
 */
typedef struct HrflowIndex
{
	char	   *name;			/* quoted and qualified */
	char	   *expression;		/* indexed expression, as SQL */
	char	   *type;			/* type of the expression */
	char	   *schema;			/* schema of the extension pgvector, quoted */
	Oid			method;			/* OID of the access method */
	int			lists;			/* greatest number of lists of any IVFFlat
								 * index on the expression, or 0 if there is
								 * none */
	double		tuples;			/* estimated number of vectors in the index */
	bool		is_whole;		/* does the index contain all sections?  If
								 * so, a search must filter out the vectors of
								 * other sections */
} HrflowIndex;

/*
 * Prefetch the next row into the processor's cache, so that a search waits
 * less for memory between two rows.  We assume that the next row is stored in
 * front of the current value, because a heap page is filled from its end, and
 * that it has about the same size.  A wrong assumption only makes the prefetch
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
extern void hrflow_match_warn(Oid relid, char *name, int dimension);

/* in best.c */
extern HrflowBest *hrflow_best_make(int k, int nparts);
extern bool hrflow_best_wants(const HrflowBest *best, double similarity);
extern void hrflow_best_keep(HrflowBest *best, const HrflowMatch *match);

/* in stream.c */
extern bool hrflow_stream_allows_workers(const HrflowParameters *parameters);
extern void hrflow_stream(const char *sql, const HrflowParameters *parameters,
						  Oid similarity, bool by_index, HrflowTake take,
						  void *arg);
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
extern double hrflow_index_max_visited(const HrflowIndex *index);
extern bool hrflow_index_is_cheaper(const HrflowSearch *search,
									const HrflowIndex *index,
									const char *section, int k);
extern void hrflow_index_search(const HrflowSearch *search,
								const HrflowIndex *index,
								const char *section, HrflowBest *best);
extern int	hrflow_index_dimension(const HrflowStore *store,
								   const char *section);

#endif							/* HRFLOW_MATCH_H */
