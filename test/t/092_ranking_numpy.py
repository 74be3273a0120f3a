# Generate random stores and searches, and rank them by NumPy in double precision.
#
#   092_ranking_numpy.py SEED NCASES HAS_PGVECTOR
#
# Each line of the output is a JSON object: "setup" and "query" are SQL, "all"
# contains the similarity of every profile that may be returned, with the key
# "source/identifier", and "best" the k highest similarities.
import json
import sys

import numpy as np

rng = np.random.default_rng(int(sys.argv[1]))
types = ["real[]"] + (["vector", "vector(%d)", "halfvec(%d)"] if sys.argv[3] == "1" else [])
sections = ["profile", "skills", "experiences"]


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def similarity(a, b):
    """Return the cosine similarity, or None if it is undefined."""
    if a.shape != b.shape:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    if norms == 0 or not np.isfinite(norms):
        return None
    return float(np.clip(np.dot(a, b) / norms, -1, 1))


def random_vector(dimension, kind, column):
    vector = rng.standard_normal(dimension)
    if kind == "zero":
        vector *= 0
    elif kind == "tie":
        vector = np.round(vector)
    elif kind == "large" and not column.startswith("halfvec"):
        vector *= 1e30
    elif kind == "small" and not column.startswith("halfvec"):
        vector *= 1e-30
    vector = vector.astype(np.float32)
    return vector.astype(np.float16).astype(np.float32) if column.startswith("halfvec") else vector


def values_of(vector, column):
    inside = ",".join("%.9g" % v for v in vector)
    return "'{%s}'::real[]" % inside + ("" if column == "real[]" else "::" + column)


def make_case(n):
    column = types[n % len(types)]
    # Vectors of more than about 500 dimensions are stored out of line.
    is_long = rng.random() < 0.25
    dimension = int(rng.integers(600, 1600)) if is_long else int(rng.integers(1, 60))
    mixed = "(" not in column
    column = column % dimension if "%d" in column else column
    store = "store_%d" % n
    rows, seen = [], set()
    for _ in range(int(rng.integers(1, 40 if is_long else 300))):
        source = str(rng.choice(["a", "b", "it's"]))
        identifier = "p%d" % rng.integers(0, 60)
        section = str(rng.choice(sections))
        item = int(rng.integers(0, 4))
        if (source, identifier, section, item) in seen:
            continue
        seen.add((source, identifier, section, item))
        kind = str(rng.choice(["plain", "plain", "zero", "tie", "tie", "large", "small"]))
        length = dimension + (1 if mixed and rng.random() < 0.1 else 0)
        rows.append((source, identifier, section, item, random_vector(length, kind, column)))
    values = ["(%s, %s, %s, %d, %s)" % (literal(source), literal(identifier), literal(section),
                                        item, values_of(vector, column))
              for source, identifier, section, item, vector in rows]
    setup = ("DO 'BEGIN PERFORM hrflow_create_store(''%s'', ''%s''); END';"
             " INSERT INTO %s VALUES %s;" % (store, column, store, ", ".join(values)))

    query = random_vector(dimension, str(rng.choice(["plain", "tie", "large", "small"])), "real[]")
    if not query.any():
        query[0] = 1
    k = int(rng.choice([1, 3, 10, 100]))
    allowed = source_id = None
    arguments = ""
    if rng.random() < 0.5:
        allowed = ["p%d" % i for i in rng.integers(0, 80, int(rng.integers(0, 70)))]
        arguments += ", profiles => ARRAY[%s]::text[]" % ",".join(
            [literal(i) for i in allowed] + ["NULL"] * int(rng.integers(0, 2)))
    if rng.random() < 0.3:
        source_id = str(rng.choice(["a", "it's", "nobody"]))
        arguments += ", source_id => " + literal(source_id)

    if rng.random() < 0.5:
        weights = {str(s): round(float(rng.uniform(0.1, 2)), 3)
                   for s in rng.choice(sections, int(rng.integers(1, 4)), replace=False)}
        call = "hrflow_match_weighted(%s, %s, %s, %d%s)" % (
            literal(store), values_of(query, "real[]"), literal(json.dumps(weights)), k, arguments)
    else:
        section = str(rng.choice(sections))
        weights = {section: 1}
        call = "hrflow_match(%s, %s, %d, %s%s)" % (
            literal(store), values_of(query, "real[]"), k, literal(section), arguments)

    nearest = {}
    for source, identifier, section, item, vector in rows:
        if section not in weights or (source_id is not None and source != source_id) or \
                (allowed is not None and identifier not in allowed):
            continue
        near = similarity(vector, query)
        if near is not None:
            parts = nearest.setdefault(source + "/" + identifier, {})
            parts[section] = max(near, parts.get(section, -2))
    sums = {key: sum(weights[s] * near for s, near in parts.items())
            for key, parts in nearest.items()}
    return {
        "setup": setup,
        "query": "SELECT source_id || '/' || profile_id, similarity FROM " + call + ";",
        "all": sums,
        "best": sorted(sums.values(), reverse=True)[:k],
    }


for case in range(int(sys.argv[2])):
    print(json.dumps(make_case(case)))
