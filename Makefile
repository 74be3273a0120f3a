# hrflow_embed: HrFlow.ai embeddings from SQL
#
# Everyday targets
#   make, make install    build and install for the PostgreSQL of PG_CONFIG
#   make installcheck     run the suites against a running server
#   make check            all of it, on a private server and a stand-in API
#   make demo             the main job, shown
#   make check-versions   make check on PostgreSQL 17 and 18
#   make check-long       what takes long
#   make check-asan       make check under address and undefined sanitizers
#   make check-valgrind   the regress suites under Valgrind
#   make coverage         which lines of src the suites reach
#   make analyze          what compilers and checkers say of src
#   make bench            the benchmarks
#   make indent           format the C sources

GATES = check check-versions check-long check-asan check-valgrind coverage \
	analyze demo bench indent

ifneq (,$(filter $(GATES),$(MAKECMDGOALS)))

# The gates bring their own copy, PostgreSQL and server: on a machine that has
# none of it yet, there is nothing to include. Other goals beside them are for
# a make of their own.
.PHONY: $(MAKECMDGOALS)

check check-long check-asan check-valgrind coverage analyze demo bench:
	@test/run $@

check-versions indent:
	@test/$@

$(filter-out $(GATES),$(MAKECMDGOALS)):
	@$(MAKE) $@

else

EXTENSION = hrflow_embed
MODULE_big = hrflow_embed
PGFILEDESC = "hrflow_embed - HrFlow.ai embeddings from SQL"

# The folder of this file: what is built may be elsewhere.
TOP := $(dir $(firstword $(MAKEFILE_LIST)))

# The version has one home: the control file.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(TOP)hrflow_embed.control)

SOURCE_HEADERS := $(wildcard $(TOP)src/*.h $(TOP)src/*/*.h)

DATA = $(patsubst $(TOP)%,%,$(wildcard $(TOP)sql/hrflow_embed--*.sql))
OBJS := $(patsubst $(TOP)%.c,%.o,$(sort $(wildcard $(TOP)src/*.c $(TOP)src/*/*.c)))

CURL_CONFIG = curl-config
PG_CPPFLAGS = -I$(TOP)src -DHRFLOW_EMBED_VERSION='"$(EXTVERSION)"' \
	$(shell $(CURL_CONFIG) --cflags)
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs)

# Inputs are in test/sql; --expecteddir is this folder, that is expected/.
# Expanded at once, for PGXS asks whether they are empty: a suite without tests
# is not run.
REGRESS := $(sort $(patsubst $(TOP)test/sql/%.sql,%,$(wildcard $(TOP)test/sql/*.sql)))
REGRESS_OPTS = --inputdir=$(TOP)test
PROVE_TESTS := $(patsubst $(TOP)%,%,$(sort $(wildcard $(TOP)test/t/*.pl)))
TAP_TESTS := $(if $(PROVE_TESTS),1)

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Every object is built anew when a header changes, however PostgreSQL itself
# was configured.
$(OBJS): $(SOURCE_HEADERS) $(addprefix $(TOP),Makefile hrflow_embed.control) | $(sort $(dir $(OBJS)))

$(sort $(dir $(OBJS))):
	@mkdir -p $@

# Loops over the elements of vectors, and the characters of links.
src/ask/vector.o src/ask/json.o: CFLAGS += $(CFLAGS_VECTORIZE)

# Both kinds of suites get a stand-in API. PostgreSQL's own definitions are
# expanded when their recipe runs, and run a program each: it is put behind
# with-api. TAP tests configure servers of their own, so the settings for the
# running one are kept from them.
TEST_DIR := $(abspath $(srcdir)/test)
pg_regress_installcheck = $(TEST_DIR)/with-api \
	$(top_builddir)/src/test/regress/pg_regress --bindir='$(bindir)' \
	$(pg_regress_locale_flags) $(EXTRA_REGRESS_OPTS)
PROVE := $(TEST_DIR)/with-api env -u PGOPTIONS $(TEST_DIR)/prove-counted
override PROVE_FLAGS += -I $(TEST_DIR)/perl

endif
