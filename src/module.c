/*-------------------------------------------------------------------------
 *
 * module.c
 *		Initialization of the library.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "base/base.h"

HRFLOW_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	hrflow_settings_define();
	hrflow_shared_define();
	hrflow_missing_define();
	hrflow_ahead_install();
}
