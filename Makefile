# hrflow_embed: HrFlow.ai embeddings from SQL
#
# Targets:
#   make, make install    build and install for the PostgreSQL of PG_CONFIG
#   make installcheck     run all tests with a running server
#   make installcheck-citus  run the statements of docs/scaling.md on a Citus cluster
#   make check            run all tests with a private server
#   make demo             demonstrate the main features
#   make check-versions   run "make check" on PostgreSQL 17, 18 and 19
#   make check-packages   build and test the Debian packages
#   make check-long       run slow tests, check-packages, and tests on other
#                         architectures
#   make check-asan       run "make check" with AddressSanitizer and
#                         UndefinedBehaviorSanitizer
#   make check-valgrind   run the regression tests in Valgrind
#   make coverage         report the lines of src that the tests reach
#   make analyze          check src with static analyzers
#   make bench            run the benchmark
#   make dist             make archives of the release from the last commit
#   make indent           format the C and Perl sources

GATES = check check-versions check-packages check-long check-asan \
	check-valgrind coverage analyze demo bench indent

ifneq (,$(filter $(GATES),$(MAKECMDGOALS)))

# These targets copy the sources and install PostgreSQL themselves, so PGXS may not
# exist yet and is not included. Other goals are passed to another make.
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

# The directory of this file. "make -f" builds in another one.
TOP := $(dir $(firstword $(MAKEFILE_LIST)))
# The names of files in that directory, relative to it.
files = $(sort $(patsubst $(TOP)%,%,$(wildcard $(addprefix $(TOP),$(1)))))

DATA := $(call files,sql/hrflow_embed--*.sql)
OBJS := $(patsubst %.c,%.o,$(call files,src/*.c src/*/*.c))
OWN_HEADERS := $(addprefix $(TOP),$(call files,src/*.h src/*/*.h))

# The version is defined in the control file.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(TOP)hrflow_embed.control)

CURL_CONFIG = curl-config
PG_CPPFLAGS = -I$(TOP)src -DHRFLOW_EMBED_VERSION='"$(EXTVERSION)"' \
	$(shell $(CURL_CONFIG) --cflags)
SHLIB_LINK = $(shell $(CURL_CONFIG) --libs) -lz

# The inputs of regression tests are in test/sql. pg_regress looks for expected/ in the
# current directory, so the tests can only be run in this one. Expand these variables
# immediately, because PGXS tests whether they are empty.
REGRESS := $(patsubst test/sql/%.sql,%,$(call files,test/sql/*.sql))
REGRESS_OPTS = --inputdir=$(TOP)test
PROVE_TESTS := $(call files,test/t/*.pl)
TAP_TESTS := $(if $(PROVE_TESTS),1)

PG_CONFIG = pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Objects depend on all headers, even if PostgreSQL was not configured to track
# dependencies. Use absolute names of directories, because make would otherwise find
# those of the sources when it builds in another directory.
FOLDERS := $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS))))
$(OBJS): $(OWN_HEADERS) $(TOP)Makefile $(TOP)hrflow_embed.control | $(FOLDERS)

$(FOLDERS):
	@mkdir -p $@

# Vectorize loops over the elements of vectors and the characters of links.
$(addprefix src/ask/,vector.o similarity.o products.o npy.o numbers.o base64.o json.o): CFLAGS += $(CFLAGS_VECTORIZE)

# Run regression and TAP tests by with-api, which starts a stand-in for the API. This
# redefines variables of PGXS, which are expanded when their recipe runs. TAP tests
# configure servers of their own, so remove the settings for the running server.
TEST_DIR := $(abspath $(srcdir)/test)
pg_regress_installcheck = $(TEST_DIR)/with-api \
	$(top_builddir)/src/test/regress/pg_regress --bindir='$(bindir)' \
	$(pg_regress_locale_flags) $(EXTRA_REGRESS_OPTS)
PROVE := $(TEST_DIR)/with-api env -u PGOPTIONS $(TEST_DIR)/prove-counted
override PROVE_FLAGS += -I $(TEST_DIR)/perl

# This is not part of installcheck, because it needs a cluster; see
# test/scale/README.md.
.PHONY: installcheck-citus
installcheck-citus:
	@$(TEST_DIR)/scale/run

# Archives for PGXN, which requires versions of three parts, and a directory named
# after the release that contains all files.
RELEASE = $(EXTENSION)-$(EXTVERSION).0

.PHONY: dist
dist:
	git archive --prefix=$(RELEASE)/ -o $(RELEASE).zip HEAD
	git archive --prefix=$(RELEASE)/ -o $(RELEASE).tar.gz HEAD

endif
