"""Make cases for 050_differential.pl, and check its requests with the encoders and
decoders of Python, which are independent of ours.

    make SEED N FILE        write N cases, each as a line of JSON
    check FILE LOG OUTCOME BASE_URL
                            compare the cases with the requests that the stand-in
                            received (its /log, in which a request for /auth follows
                            those of each case), and with the outcomes of the calls
                            (one SQLSTATE per line); print differences and counts
"""
import json
import random
import sys
from collections import Counter
from decimal import Decimal
from urllib.parse import parse_qsl, quote, unquote_to_bytes

MAX_URL = 64 * 1024
MAX_TEXT = 1024 * 1024
KEY = "askr_0123456789abcdef0123456789abcdef"
NAMES = {
    ("profile", "id"): ["source_id", "profile_id", "profile_reference", "profile_email", "fields"],
    ("profile", "key"): ["source_key", "key", "reference", "profile_email", "fields"],
    ("job", "id"): ["board_id", "job_id", "job_reference"],
    ("job", "key"): ["board_key", "key", "reference"],
}
PATHS = {"profile": "/v1/profile/embedding", "batch": "/v1/profile/embedding",
         "job": "/v1/job/embedding", "text": "/v1/text/embedding"}


# Making cases

def character(rng):
    """Return a character of a text: any character of UTF-8 except NUL."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice("&=?#%+;/\\\"'<>[]{}|^`~!@$*(),:. \t\r\n-_")
    if kind < 0.5:
        return chr(rng.randrange(0x20, 0x7f))
    if kind < 0.58:
        return chr(rng.choice([*range(1, 0x20), 0x7f]))
    if kind < 0.7:
        return chr(rng.randrange(0x80, 0x800))
    if kind < 0.85:
        code = rng.randrange(0x800, 0x10000 - 0x800)
        return chr(code if code < 0xd800 else code + 0x800)
    if kind < 0.95:
        return chr(rng.randrange(0x10000, 0x110000))
    return rng.choice(["%41", "%00", "%", "%zz", "&key=x", "é", "e\u0301", "\u202e", "\ufeff", "\uffff",
                       "\U0010ffff", "\u2028", "#", "\r\nX-Evil: 1", "../", "\u00a0", "\u0080"])


def string(rng, longest=40):
    return "".join(character(rng) for _ in range(rng.randrange(1, longest)))


def email(rng):
    return string(rng, 12) + "@" + string(rng, 12)


def value(rng, depth=0):
    kind = rng.random() + depth * 0.12
    if kind < 0.25:
        return {string(rng, 8) if rng.random() < 0.9 else "": value(rng, depth + 1)
                for _ in range(rng.randrange(4))}
    if kind < 0.4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 0.65:
        return string(rng, 20)
    if kind < 0.8:
        return rng.choice([0, 1, -1, 2**31, 2**63, -2**64, 10**30, rng.randrange(-1000, 1000)])
    if kind < 0.9:
        return rng.choice([0.5, -1.25, 1e-7, 1e20, rng.random()])
    return rng.choice([True, False, None, ""])


def fields(rng):
    kind = rng.random()
    if kind < 0.2:
        return None
    if kind < 0.25:
        return {}
    if kind < 0.5:
        names = ["profile", "skills", "experiences", "educations"]
        return {name: rng.choice([1, [0, 2]]) for name in rng.sample(names, 2)}
    return {string(rng, 10): value(rng) for _ in range(rng.randrange(1, 5))}


def identifiers(rng):
    """Return identifiers of a profile: any combination, sometimes none."""
    return [maker(rng) if rng.random() < 0.6 else None for maker in (string, string, email)]


def make_case(rng):
    kind = rng.choices(["profile", "batch", "job", "text"], [60, 4, 18, 18])[0]
    dialect = rng.choice(["id", "key"])
    users = ["ada@example.com", "a+b/c?d=e&f#g%41\\\"@x.y"]
    case = {"kind": kind, "dialect": dialect,
            "user": rng.choice(users + ([""] if dialect == "id" else []))}
    source = string(rng) if rng.random() < 0.97 else None
    if kind == "profile":
        case["values"] = [source] + identifiers(rng) + [fields(rng)]
        if rng.random() < 0.02:
            case["values"] = [source, string(rng, rng.choice([2000, 20000])), None, None, None]
        if rng.random() < 0.01:
            case["values"][rng.randrange(4)] = ""
    elif kind == "batch":
        rows = [identifiers(rng) for _ in range(rng.randrange(1, 30))]
        rows += rng.choices(rows, k=rng.randrange(4))
        case["source"] = string(rng)
        case["rows"] = rows
        case["fields"] = fields(rng)
    elif kind == "job":
        case["values"] = [string(rng) if rng.random() < 0.5 else None,
                          string(rng) if rng.random() < 0.6 else None,
                          string(rng) if rng.random() < 0.6 else None]
    else:
        case["text"] = string(rng, 400)
        if rng.random() < 0.01:
            case["text"] = "é\\" * (MAX_TEXT // 3 + rng.choice([0, 1]))
    return case


def make(seed, n, path):
    rng = random.Random(seed)
    with open(path, "w", encoding="ascii") as out:
        for _ in range(n):
            out.write(json.dumps(make_case(rng)) + "\n")


# Checking requests

def object_of(pairs):
    if len(set(name for name, _ in pairs)) < len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def parse(text):
    """Parse JSON. Numbers remain exact, and distinct from strings."""
    return json.loads(text, parse_float=number, parse_int=number, object_pairs_hook=object_of)


def number(text):
    return {"a number": str(Decimal(text).normalize())}


def expect_query(kind, dialect, values):
    """Return the parameters to be sent, in order, or the reason why nothing is."""
    if any(v == "" for v in values[:4]):
        return "22023"
    needed = values[1:4] if kind == "profile" else values[1:]
    if all(v is None for v in needed) or (kind == "profile" and values[0] is None):
        return None
    return [(name, v) for name, v in zip(NAMES[kind, dialect], values)
            if v is not None and not (name == "fields" and v == {})]


def query_of(pairs):
    """Return a key that identifies a request, with fields as a value, not a text."""
    return json.dumps([[n, v if n != "fields" else parse(json.dumps(v))] for n, v in pairs],
                      sort_keys=True)


def read_query(raw):
    """Decode a query strictly, and verify that encoding it again gives the same bytes."""
    pairs = []
    for part in raw.split("&"):
        name, encoded = part.split("=", 1)
        decoded = unquote_to_bytes(encoded).decode("utf-8", "strict")
        if quote(decoded, safe="") != encoded:
            raise ValueError("not encoded according to RFC 3986")
        pairs.append((name, decoded))
    if parse_qsl(raw, keep_blank_values=True, strict_parsing=True, errors="strict") != pairs:
        raise ValueError("a form decoder reads it differently")
    return query_of([(n, v if n != "fields" else parse(v)) for n, v in pairs])


class Wrong(Exception):
    pass


def check_common(case, request):
    headers = {name.lower(): v for name, v in request["headers"].items()}
    if request["path"] != PATHS[case["kind"]]:
        raise Wrong("path " + request["path"])
    if headers.get("x-api-key") != KEY or headers.get("x-user-email", "") != case["user"]:
        raise Wrong("headers")
    if any(name.startswith("x-evil") for name in headers):
        raise Wrong("an injected header")
    if request["method"] != ("POST" if case["kind"] == "text" else "GET"):
        raise Wrong("method " + request["method"])


def is_too_long(base_url, kind, pairs):
    """Is the URL too long? The pairs must not contain fields, whose text may differ."""
    query = "&".join(name + "=" + quote(v, safe="") for name, v in pairs)
    return len(base_url) - len("/v1") + len(PATHS[kind]) + 1 + len(query) > MAX_URL


def compare(case, requests, state, base_url):
    """Return the kind of the case, or raise Wrong."""
    kind = case["kind"]
    for request in requests:
        check_common(case, request)
    if kind == "text":
        text = case["text"]
        if len(text.encode()) > MAX_TEXT:
            if requests or state != "22023":
                raise Wrong("a text that is too long was accepted")
            return "refused"
        if len(requests) != 1:
            raise Wrong("%d requests" % len(requests))
        body = requests[0]["body"].encode("latin-1").decode("utf-8", "strict")
        if json.loads(body, object_pairs_hook=lambda p: p) != [("text", text)]:
            raise Wrong("body")
        return "text"

    if kind == "batch":
        wanted = []
        for row in case["rows"]:
            pairs = expect_query("profile", case["dialect"], [case["source"]] + row + [case["fields"]])
            if pairs:
                wanted.append(query_of([(n, v) for n, v in pairs]))
        wanted = Counter(set(wanted))
    else:
        pairs = expect_query(kind, case["dialect"], case["values"])
        if pairs == "22023":
            if requests or state != pairs:
                raise Wrong("an empty identifier was accepted")
            return "refused"
        if pairs and not any(n == "fields" for n, _ in pairs) and is_too_long(base_url, kind, pairs):
            if requests or state != "22023":
                raise Wrong("a URL that is too long was accepted")
            return "too long"
        wanted = Counter([query_of(pairs)] if pairs else [])

    got = Counter(read_query(request["query"]) for request in requests)
    if got != wanted:
        raise Wrong("sent %s instead of %s" % (dict(got - wanted), dict(wanted - got)))
    return kind if requests else "nothing to ask"


def split_log(path):
    """Return the requests of each case."""
    groups = [[]]
    with open(path, encoding="ascii") as file:
        for line in file:
            request = json.loads(line)
            if request["path"] == "/v1/auth":
                groups.append([])
            else:
                groups[-1].append(request)
    return groups


def check(cases_path, log_path, outcome_path, base_url):
    with open(cases_path, encoding="ascii") as file:
        cases = [json.loads(line) for line in file]
    with open(outcome_path, encoding="ascii") as file:
        states = file.read().split()
    groups = split_log(log_path)

    counts = Counter()
    if len(groups) != len(cases) + 1 or groups[-1] or len(states) != len(cases):
        counts["wrong"] += 1
        print("%d cases, %d groups of requests, %d outcomes" % (len(cases), len(groups), len(states)))
    for case, requests, state in zip(cases, groups, states):
        try:
            counts[compare(case, requests, state, base_url)] += 1
            counts["requests"] += len(requests)
        except (Wrong, ValueError) as error:
            counts["wrong"] += 1
            if counts["wrong"] <= 5:
                print("%s, %s: %s" % (error, state, json.dumps(case)[:600]))
    print(json.dumps(counts, sort_keys=True))


if sys.argv[1] == "make":
    make(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
else:
    check(*sys.argv[2:])
