/* Everything the Python binding sees. */
#ifndef SEALSVC_NATIVE_H
#define SEALSVC_NATIVE_H

#include "seal.h"
#include "sealsvc/bpf.h"
#include "sealsvc/compare.h"
#include "sealsvc/copy.h"
#include "sealsvc/extents.h"
#include "sealsvc/files.h"
#include "sealsvc/gate.h"
#include "sealsvc/inflight.h"
#include "sealsvc/keeper.h"
#include "sealsvc/lease.h"
#include "sealsvc/mappings.h"
#include "sealsvc/namespaces.h"
#include "sealsvc/operation.h"
#include "sealsvc/pin.h"
#include "sealsvc/populate.h"
#include "sealsvc/procfs.h"
#include "sealsvc/proof.h"
#include "sealsvc/rings.h"
#include "sealsvc/validate.h"
#include "sealsvc/verdict.h"

#endif
