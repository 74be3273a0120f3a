/*-------------------------------------------------------------------------
 *
 * module.c
 *		Initializes the library when it is loaded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "base/base.h"
#include "store/store.h"

HRFLOW_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	hrflow_settings_define();
	hrflow_shared_define();
	hrflow_missing_define();
	hrflow_ahead_install();
	hrflow_updated_define();
}
