# hrflow_embed: HrFlow.ai embeddings from SQL
#
# Everyday targets
#   make, make install    build and install for the PostgreSQL of PG_CONFIG
#   make installcheck     run the suites against a running server
#   make check            all of it, on a private server and a stand-in API
#   make demo             the main job, shown
#   make check-versions   make check on PostgreSQL 17 and 18
#   make check-long       what takes long
#   make bench            the benchmarks
#   make indent           format the C sources

EXTENSION = hrflow_embed
MODULE_big = hrflow_embed
PGFILEDESC = "hrflow_embed - HrFlow.ai embeddings from SQL"

# The version has one home: the control file.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" hrflow_embed.control)

DATA = $(wildcard sql/hrflow_embed--*.sql)
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

CURL_CONFIG = curl-config
PG_CPPFLAGS = -DHRFLOW_EMBED_VERSION='"$(EXTVERSION)"' \
	$(shell $(CURL_CONFIG) --cflags)
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

# Inputs are in test/sql; --expecteddir is this folder, that is expected/.
REGRESS = $(sort $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test
TAP_TESTS = 1
PROVE_TESTS = $(sort $(wildcard test/t/*.pl))
PROVE_FLAGS = -I $(CURDIR)/test/perl

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Every object is built anew when a header changes, however PostgreSQL itself
# was configured.
$(OBJS): $(wildcard src/*.h) Makefile hrflow_embed.control
