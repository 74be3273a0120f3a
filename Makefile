# hrflow_embed: HrFlow.ai embeddings from SQL
#
# Everyday targets
#   make, make install    build and install for the PostgreSQL of PG_CONFIG
#   make installcheck     run the suites against a running server
#   make installcheck-citus  run the statements of docs/scaling.md on a Citus cluster
#   make check            all of it, on a private server and a stand-in API
#   make demo             the main job, shown
#   make check-versions   make check on PostgreSQL 17, 18 and 19
#   make check-packages   build and test the Debian packages
#   make check-long       what takes long, check-packages included
#   make check-asan       make check under address and undefined sanitizers
#   make check-valgrind   the regress suites under Valgrind
#   make coverage         which lines of src the suites reach
#   make analyze          what compilers and checkers say of src
#   make bench            the benchmarks
#   make dist             archives of the release, from the last commit
#   make indent           format the C and Perl sources

GATES = check check-versions check-packages check-long check-asan \
	check-valgrind coverage analyze demo bench indent

ifneq (,$(filter $(GATES),$(MAKECMDGOALS)))

# The gates bring their own copy, PostgreSQL and server: on a machine that has
# none of it yet, there is nothing to include. Other goals beside them are for
# a make of their own.
.PHONY: $(MAKECMDGOALS)

check check-long check-asan check-valgrind coverage analyze demo bench:
	@test/run $@

check-versions check-packages indent:
	@test/$@

$(filter-out $(GATES),$(MAKECMDGOALS)):
	@$(MAKE) $@

else

EXTENSION = hrflow_embed
MODULE_big = hrflow_embed
PGFILEDESC = "hrflow_embed - HrFlow.ai embeddings from SQL"

# The folder of this file; "make -f" builds in another one.
TOP := $(dir $(firstword $(MAKEFILE_LIST)))
# The names of files in that folder, relative to it.
files = $(sort $(patsubst $(TOP)%,%,$(wildcard $(addprefix $(TOP),$(1)))))

DATA := $(call files,sql/hrflow_embed--*.sql)
OBJS := $(patsubst %.c,%.o,$(call files,src/*.c src/*/*.c))
OWN_HEADERS := $(addprefix $(TOP),$(call files,src/*.h src/*/*.h))

# The version is written in the control file alone.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(TOP)hrflow_embed.control)

CURL_CONFIG = curl-config
PG_CPPFLAGS = -I$(TOP)src -DHRFLOW_EMBED_VERSION='"$(EXTVERSION)"' \
	$(shell $(CURL_CONFIG) --cflags)
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs) -lz

# Inputs are in test/sql. Expected results are looked for in expected/, below
# the current folder: the suites run from this one only.
# Expanded at once, for PGXS asks whether they are empty: a suite without tests
# is not run.
REGRESS := $(patsubst test/sql/%.sql,%,$(call files,test/sql/*.sql))
REGRESS_OPTS = --inputdir=$(TOP)test
PROVE_TESTS := $(call files,test/t/*.pl)
TAP_TESTS := $(if $(PROVE_TESTS),1)

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Objects depend on all headers, even if PostgreSQL was not configured to track
# dependencies. Their folders are named in full, or make would find those of
# the sources instead, when it builds elsewhere.
FOLDERS := $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS))))
$(OBJS): $(OWN_HEADERS) $(TOP)Makefile $(TOP)hrflow_embed.control | $(FOLDERS)

$(FOLDERS):
	@mkdir -p $@

# Loops over the elements of vectors, and the characters of links.
$(addprefix src/ask/,vector.o similarity.o products.o npy.o numbers.o base64.o json.o): CFLAGS += $(CFLAGS_VECTORIZE)

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

# Not part of installcheck, for it needs a cluster: see test/scale/README.md.
.PHONY: installcheck-citus
installcheck-citus:
	@$(TEST_DIR)/scale/run

# What is committed, as PGXN wants it: versions have three parts, and all files
# are in a folder named after the release.
RELEASE = $(EXTENSION)-$(EXTVERSION).0

.PHONY: dist
dist:
	git archive --prefix=$(RELEASE)/ -o $(RELEASE).zip HEAD
	git archive --prefix=$(RELEASE)/ -o $(RELEASE).tar.gz HEAD

endif
