/*-------------------------------------------------------------------------
 *
 * match.h
 *		What the files that rank a store's profiles share.
 *
 * match.c has the SQL functions that rank and decides how a search is made;
 * exact.c compares every vector, and index.c asks an index of pgvector's; best.c
 * keeps the best matches, and stream.c executes queries.  recall.c compares what
 * an index returns with the exact answer.
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
 * The arguments of hrflow_match(), in their order.  Other functions that rank have
 * most of them in the same place.
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
 * A vector that was found, and how near to the query it is.
 */
typedef struct HrflowMatch
{
	/* The key of HrflowBest's hash table, so these two come first. */
	char	   *source_id;
	char	   *identifier;

	char	   *section;
	int			item;
	double		similarity;
	double	   *parts;			/* of a weighted sum: each section's part, or
								 * NaN; NULL: no sum */
} HrflowMatch;

/*
 * The k best matches so far, one for each profile.
 */
typedef struct HrflowBest
{
	MemoryContext context;		/* holds the matches and their strings */
	int			k;
	int			n;
	int			nparts;			/* number of each match's parts */
	HrflowMatch **matches;		/* n of them, best first */
	HTAB	   *by_profile;		/* the same matches */
} HrflowBest;

/*
 * What is searched for, and among which vectors.
 */
typedef struct HrflowSearch
{
	const HrflowStore *store;
	const char *function;		/* hrflow_vector_similarity, qualified */
	ArrayType  *query;			/* one-dimensional, without nulls, not zero */
	const double *elements;		/* of the query, "dimension" of them */
	int			dimension;
	double		norm;			/* the query's length */

	/* Which profiles are searched. */
	text	   *source_id;		/* NULL: those of every source */
	ArrayType  *profiles;		/* text[]: their identifiers; NULL: all */
	int			nprofiles;		/* number of elements of "profiles" */
	ArrayType  *sources;		/* the sources that have vectors, once they
								 * have been looked up; NULL: not yet, or
								 * there are too many */
	bool		knows_sources;

	bool		has_reported;	/* was the client told of dead tuples? */
} HrflowSearch;

/*
 * A reader of values that are stored out of line.
 */
typedef struct HrflowToast HrflowToast;

/*
 * Takes a match.  Its strings live until the visitor returns.
 */
typedef void (*HrflowVisitor) (void *arg, const HrflowMatch *match);

/*
 * Takes a row of a query.  Returns false when it wants no more.
 */
typedef bool (*HrflowTake) (void *arg, TupleTableSlot *slot);

/*
 * An index of pgvector's that serves a section.
 */
typedef struct HrflowIndex
{
	char	   *name;			/* quoted and qualified */
	char	   *expression;		/* what is indexed, as SQL */
	char	   *type;			/* its type */
	char	   *schema;			/* pgvector's, quoted */
	Oid			method;			/* of pg_am */
	bool		is_hnsw;		/* else it is of the type ivfflat */
	int			lists;			/* of ivfflat; 0: the default */
	double		tuples;			/* estimated number of vectors in it */
} HrflowIndex;

/*
 * Begin to load the row that is most likely read next into the processor's cache.
 * A heap page is filled from its end, so this is the row in front of a value that
 * is stored in it, and of about the same size.  A search otherwise waits for memory
 * between two rows.  Where something else is there, no harm is done.
 */
static inline void
hrflow_prefetch_next(const struct varlena *value)
{
#ifdef __GNUC__
	const char *end = (const char *) value;
	const char *start = end - Min(VARSIZE_ANY(value), BLCKSZ) - 64;

	/* 64 bytes are a cache line of most processors. */
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
