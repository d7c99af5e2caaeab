"""The gradients of the selective scan, both directions in one launch, bitwise the same on every run.

Why this shape. With g_t the gradient of the state h_t, a_t = exp(dt_t A) and gy the gradient before the gate,
g_t = gy_t C_t + a_{t+1} g_{t+1}: a walk back through states that the forward pass did not keep. It kept one
every BLOCK steps. Per block the states at the beginnings of tiles are found again and put aside (memory that
only this program touches, so it stays in the cache), then tiles are taken from last to first with their
states in registers. Gradients of B and C are sums over channels: each program writes its own sum, and a
second kernel (`triton_gradients.py`) adds them in a fixed order; no atomics. The gate needs the output of
the scan, which is found again on the way; as forward, whichever direction comes second to a time adds the
other's part.

A short batch is split into spans as in the forward pass: one pass finds what each span hands back of a zero
gradient, and the same chain over the spans gives the gradient with which each begins.

Counted on an H100, 16 x 3137 tokens: 42 instructions an update, so 2.3 ms at one a clock; it takes 8.0. With
255 registers a thread (2.7 of the 42 are spills) two warps a scheduler issue 40 % of the time; a third of the
stalls wait for memory, a tenth for instructions. Tried and slower: two channels a thread, fewer registers.
"""

import triton
import triton.language as tl

from flexvideo.scan.triton_tile import (
    LOG2E,
    floats,
    from_lane,
    gate_gradients,
    gated,
    load_rows,
    load_tile,
    over_lanes,
    put,
    sigmoid,
    softplus,
    stacked,
    store_tile,
    sums_of,
)

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["L", "rows", "span", "blocks"])
def backward_kernel(
    grad_ptr,
    u_ptr,
    delta_ptr,
    a_ptr,
    bc_ptr,
    skip_ptr,
    z_ptr,
    bias_ptr,
    state_ptr,
    carry_ptr,
    decay_ptr,
    scratch_ptr,
    du_ptr,
    ddelta_ptr,
    dz_ptr,
    out_ptr,
    da_ptr,
    dbc_ptr,
    dskip_ptr,
    dbias_ptr,
    L,
    D,
    rows,
    span,
    blocks,
    z_b,
    z_l,
    K: tl.constexpr,
    N: tl.constexpr,
    NL: tl.constexpr,
    NR: tl.constexpr,
    BD: tl.constexpr,
    TT: tl.constexpr,
    BLOCK: tl.constexpr,
    ENDS: tl.constexpr,
    CARRY: tl.constexpr,
    OUT: tl.constexpr,
):
    """One span of the backward pass: with ENDS only what it hands back of a zero gradient.

    carry, decay: as forward. scratch: BLOCK / TT states a channel, a program. da (b * spans, k, d, NP),
    dskip and dbias (b * spans, k, d), dbc (channel blocks, k, b, rows, 2, NP): sums of this program.
    """
    NP: tl.constexpr = NL * NR
    PER: tl.constexpr = BLOCK // TT  # tiles a block
    COUNT: tl.constexpr = 2 * NR * TT  # gradients of B and C a lane and tile
    c, spans = tl.program_id(1), tl.num_programs(1)
    b, samples = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    d = tl.program_id(0) * BD + tl.arange(0, BD)[:, None, None]
    lane = tl.arange(0, NL)[None, :, None]
    k = tl.arange(0, K)[None, None, :]
    sign = 1 - 2 * k
    on = d < D
    end = tl.where(on, L, 0)
    index = tl.where(k == 0, c, spans - 1 - c)
    s = index * span
    t_first = tl.where(k == 0, s, rows - 1 - s) + sign * lane
    kb = k.to(tl.int64) * samples + b
    u_at = u_ptr + (kb * L + t_first) * D + d
    delta_at = delta_ptr + (kb * L + t_first) * D + d
    du_at = du_ptr + (kb * L + t_first) * D + d
    ddelta_at = ddelta_ptr + (kb * L + t_first) * D + d
    grad_at = grad_ptr + (b * L + t_first) * D + d
    dz_at = dz_ptr + (b * L + t_first) * D + d
    out_at = out_ptr + (b * L + t_first) * D + d
    z_at = z_ptr + b * z_b + t_first.to(tl.int64) * z_l + d
    bc_at = bc_ptr + (kb * rows + s) * NP + lane * (NR // 2)
    carry_at = carry_ptr + ((kb * spans + index) * NP + lane * NR) * D + d
    state_at = state_ptr + ((kb * blocks + s // BLOCK) * NP + lane * NR) * D + d
    program = (b * spans + c) * tl.num_programs(0) + tl.program_id(0)
    scratch_at = scratch_ptr + ((program * PER * K + k) * NP + lane * NR) * BD + (d - tl.program_id(0) * BD)
    sums = ((tl.program_id(0).to(tl.int64) * K + k) * samples + b) * rows + s
    dbc_at = dbc_ptr + tl.reshape(sums, (1, K, 1)) * (2 * NP)
    skip = tl.load(skip_ptr + k * D + d, mask=on, other=0.0)
    bias = tl.load(bias_ptr + k * D + d, mask=on, other=0.0)
    a, ag, da = (), (), ()
    for i in tl.static_range(NR):
        held = on & (lane * NR + i < N)
        a = a + (tl.load(a_ptr + (k * D + d) * N + lane * NR + i, mask=held, other=0.0) * LOG2E,)
        da = da + (tl.zeros([BD, NL, K], tl.float32),)
        if CARRY:
            ag = ag + (tl.load(carry_at + i * D, mask=on, other=0.0),)
        else:
            ag = ag + (tl.zeros([BD, NL, K], tl.float32),)
    dskip = tl.zeros([BD, NL, K], tl.float32)
    dbias = tl.zeros([BD, NL, K], tl.float32)
    total = tl.zeros([BD, NL, K], tl.float32)
    tiles = span // TT
    meet = tiles // 2
    groups = tl.cdiv(tiles, PER)
    for group in range(0, groups):
        first = (groups - 1 - group) * PER  # tile
        count = min(PER, tiles - first)
        if not ENDS:
            h = ()
            for i in tl.static_range(NR):
                h = h + (tl.load(state_at + (first // PER * NP + i).to(tl.int64) * D, mask=on, other=0.0),)
            ahead = sign * (first * TT)
            t = t_first + ahead
            u_next = load_tile(u_at + ahead.to(tl.int64) * D, t, sign, D, end, TT, NL)
            delta_next = load_tile(delta_at + ahead.to(tl.int64) * D, t, sign, D, end, TT, NL)
            for j in range(0, count):
                for i in tl.static_range(NR):
                    tl.store(scratch_at + (j * K * NP + i) * BD, h[i])
                if j + 1 < count:
                    u_now, delta_now = u_next, delta_next
                    ahead = sign * ((first + j + 1) * TT)
                    t = t_first + ahead
                    u_next = load_tile(u_at + ahead.to(tl.int64) * D, t, sign, D, end, TT, NL)
                    delta_next = load_tile(delta_at + ahead.to(tl.int64) * D, t, sign, D, end, TT, NL)
                    t = t - sign * TT
                    words = load_rows(bc_at + (first + j) * TT * NP, TT, NP, NR)
                    for q in tl.static_range(TT // NL):
                        inside = ((t + sign * (q * NL)) >= 0) & ((t + sign * (q * NL)) < end)
                        dt = tl.where(inside, softplus(delta_now[q].to(tl.float32) + bias), 0.0)
                        dtu = dt * u_now[q].to(tl.float32)
                        for p in tl.static_range(NL):
                            bs = floats(words, (q * NL + p) * NR, NR)
                            dt_p = from_lane(dt, lane, p, NL)
                            dtu_p = from_lane(dtu, lane, p, NL)
                            new = ()
                            for i in tl.static_range(NR):
                                new = new + (tl.exp2(dt_p * a[i]) * h[i] + dtu_p * bs[i],)
                            h = new
        ahead = sign * ((first + count - 1) * TT)
        t = t_first + ahead
        far = ahead.to(tl.int64) * D
        u_next = load_tile(u_at + far, t, sign, D, end, TT, NL)
        delta_next = load_tile(delta_at + far, t, sign, D, end, TT, NL)
        grad_next = load_tile(grad_at + far, t, sign, D, end, TT, NL)
        gate_next = load_tile(z_at + ahead.to(tl.int64) * z_l, t, sign, z_l, end, TT, NL)
        for back in range(0, count):
            u_now, delta_now, grad_now, gate = u_next, delta_next, grad_next, gate_next
            tile = first + count - 1 - back
            ahead = sign * ((tile - 1) * TT)  # the next tile: the one before
            t = t_first + ahead
            far = ahead.to(tl.int64) * D
            u_next = load_tile(u_at + far, t, sign, D, end, TT, NL)
            delta_next = load_tile(delta_at + far, t, sign, D, end, TT, NL)
            grad_next = load_tile(grad_at + far, t, sign, D, end, TT, NL)
            gate_next = load_tile(z_at + ahead.to(tl.int64) * z_l, t, sign, z_l, end, TT, NL)
            ahead = sign * (tile * TT)
            t = t_first + ahead
            far = ahead.to(tl.int64) * D
            words = load_rows(bc_at + tile * TT * NP, TT, NP, NR)
            dts, gys = (), ()
            for q in tl.static_range(TT // NL):
                inside = ((t + sign * (q * NL)) >= 0) & ((t + sign * (q * NL)) < end)
                dts = dts + (tl.where(inside, softplus(delta_now[q].to(tl.float32) + bias), 0.0),)
                g = gate[q].to(tl.float32)
                gys = gys + (grad_now[q].to(tl.float32) * g * sigmoid(g),)
            if ENDS:
                for q in tl.static_range(TT // NL):
                    total += dts[q]
                for p in tl.static_range(TT - 1, -1, -1):
                    cs = floats(words, p * NR + NR // 2, NR)
                    dt_p = from_lane(dts[p // NL], lane, p % NL, NL)
                    gy_p = from_lane(gys[p // NL], lane, p % NL, NL)
                    new = ()
                    for i in tl.static_range(NR):
                        new = new + (tl.exp2(dt_p * a[i]) * (ag[i] + gy_p * cs[i]),)
                    ag = new
            else:
                hs, decays, dt_all, dtu_all = (), (), (), ()
                for i in tl.static_range(NR):
                    hs = hs + (tl.load(scratch_at + ((tile - first) * K * NP + i) * BD),)
                for p in tl.static_range(TT):
                    bs = floats(words, p * NR, NR)
                    dt_p = from_lane(dts[p // NL], lane, p % NL, NL)
                    dtu_p = from_lane(dts[p // NL] * u_now[p // NL].to(tl.float32), lane, p % NL, NL)
                    dt_all = dt_all + (dt_p,)
                    dtu_all = dtu_all + (dtu_p,)
                    for i in tl.static_range(NR):
                        decay = tl.exp2(dt_p * a[i])
                        decays = decays + (decay,)
                        hs = hs + (decay * hs[p * NR + i] + dtu_p * bs[i],)
                ys, dxs, dts_part, grads = (), (), (), ()
                for q in tl.static_range(TT // NL):
                    ys = ys + (skip * u_now[q].to(tl.float32),)
                    dxs = dxs + (tl.zeros([BD, NL, K], tl.float32),)
                    dts_part = dts_part + (tl.zeros([BD, NL, K], tl.float32),)
                for p in tl.static_range(TT - 1, -1, -1):
                    bs = floats(words, p * NR, NR)
                    cs = floats(words, p * NR + NR // 2, NR)
                    gy_p = from_lane(gys[p // NL], lane, p % NL, NL)
                    y = tl.zeros([BD, NL, K], tl.float32)
                    through_b = tl.zeros([BD, NL, K], tl.float32)
                    through_a = tl.zeros([BD, NL, K], tl.float32)
                    dbs, dcs, new, new_da = (), (), (), ()
                    for i in tl.static_range(NR):
                        h_now = hs[(p + 1) * NR + i]
                        g = ag[i] + gy_p * cs[i]
                        back_g = decays[p * NR + i] * g
                        left = back_g * hs[p * NR + i]
                        y += cs[i] * h_now
                        through_b += g * bs[i]
                        through_a += a[i] * left
                        dbs = dbs + (g * dtu_all[p],)
                        dcs = dcs + (gy_p * h_now,)
                        new = new + (back_g,)
                        new_da = new_da + (da[i] + dt_all[p] * left,)
                    ag, da = new, new_da
                    grads = dbs + dcs + grads
                    mine = lane == p % NL
                    ys = put(ys, mine, over_lanes(y, NL), p // NL, TT // NL)
                    dxs = put(dxs, mine, over_lanes(through_b, NL), p // NL, TT // NL)
                    dts_part = put(dts_part, mine, over_lanes(through_a, NL), p // NL, TT // NL)
                dus, ddeltas = (), ()
                for q in tl.static_range(TT // NL):
                    u = u_now[q].to(tl.float32)
                    inside = ((t + sign * (q * NL)) >= 0) & ((t + sign * (q * NL)) < end)
                    slope = tl.where(inside, sigmoid(delta_now[q].to(tl.float32) + bias), 0.0)
                    ddelta = (dts_part[q] * LN2 + dxs[q] * u) * slope
                    dus = dus + (dxs[q] * dts[q] + skip * gys[q],)
                    ddeltas = ddeltas + (ddelta,)
                    dskip += gys[q] * u
                    dbias += ddelta
                store_tile(du_at + far, dus, t, sign, D, end, TT, NL)
                store_tile(ddelta_at + far, ddeltas, t, sign, D, end, TT, NL)
                if K == 2 and tile == meet - 1:
                    tl.debug_barrier()
                if K == 2 and tile >= meet:
                    store_tile(dz_at + far, ys, t, sign, D, end, TT, NL)
                else:
                    whole = ys
                    if K == 2:
                        partner = load_tile(dz_at + far, t, sign, D, end, TT, NL)
                        whole = sums_of(ys, partner, TT // NL)
                    store_tile(
                        dz_at + far, gate_gradients(whole, gate, grad_now, TT // NL), t, sign, D, end, TT, NL
                    )
                    if OUT:
                        store_tile(out_at + far, gated(whole, gate, TT // NL), t, sign, D, end, TT, NL)
                over_channels = tl.sum(stacked(grads, COUNT, [BD, NL, K]), 0)  # [NL, K, COUNT]
                column = tl.arange(0, COUNT)[None, None, :]
                row = tile * TT + column // (2 * NR)
                place = (column // NR % 2) * NP + tl.arange(0, NL)[:, None, None] * NR + column % NR
                tl.store(dbc_at + row * (2 * NP) + place, over_channels)
    if ENDS:
        for i in tl.static_range(NR):
            tl.store(carry_at + i * D, ag[i], mask=on)
        total = over_lanes(total, NL)
        tl.store(decay_ptr + (kb * spans + index) * D + d + lane * 0, total, mask=on & (lane == 0))
    else:
        part = ((b * spans + c) * K + k) * D + d
        for i in tl.static_range(NR):
            tl.store(da_ptr + part * NP + lane * NR + i, da[i], mask=on)
        tl.store(dskip_ptr + part + lane * 0, over_lanes(dskip, NL), mask=on & (lane == 0))
        tl.store(dbias_ptr + part + lane * 0, over_lanes(dbias, NL), mask=on & (lane == 0))
