// Views of tokens: what is done for each sequence, however short.
#include "lsk_objective.h"

void lsk_objective_span_at(lsk_objective_span *span, const lsk_objective_arrays *arrays, int64_t row, int64_t column,
                           int64_t count, double advantage) {
    *span = arrays->first;
    span->count = count;
    span->advantage = advantage;
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++)
        if (span->input[input])
            span->input[input] = (const char *)span->input[input] + (row * arrays->row_bytes[input] + column * arrays->size[input]);
    if (span->mask) span->mask += row * arrays->mask_row_bytes + column;
    if (span->kept) span->kept += row * arrays->kept_row_bytes + column;
    if (span->selected) span->selected += row * arrays->selected_row_bytes + column;
}
