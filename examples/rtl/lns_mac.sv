// Multiplies and accumulates VECTOR pairs of codes a clock; VECTOR = 1 is the plain unit.
//
// The terms of one clock are added exactly; the accumulator saturates. `first` marks the
// first vector of a sum. Zero codes fill a short last vector.
//
// BINS = 0: the table makes each term linear, and there is one accumulator.
// BINS = 1: an accumulator for each entry of the table takes the terms without that entry; what
//           reads the accumulators multiplies it in, once per sum: sum of T[h] acc[h].
module lns_mac #(
    parameter int A_BITS = 8,
    parameter int B_BITS = 8,
    parameter int LOG2_BASE_FACTOR = 3,
    parameter int LUT_BITS = 3,
    parameter int ACC_BITS = 24,
    parameter int HEADROOM = 4,
    parameter int FRACTION_BITS = 8,
    parameter [(FRACTION_BITS + 2) * 2**LUT_BITS - 1:0] TABLE = 0,
    parameter int VECTOR = 1,
    parameter int BINS = 0,
    parameter int ACCUMULATORS = BINS ? 2**LUT_BITS : 1  // follows
) (
    input  logic clk,
    input  logic first,
    input  logic [VECTOR * A_BITS - 1:0] a,
    input  logic [VECTOR * B_BITS - 1:0] b,
    output logic [ACCUMULATORS * ACC_BITS - 1:0] acc
);
    localparam int TERM_BITS = ACC_BITS > HEADROOM ? ACC_BITS - HEADROOM : 1;
    localparam int SUM_BITS = TERM_BITS + 1 + $clog2(VECTOR);
    localparam int ENTRY_BITS = LUT_BITS > 0 ? LUT_BITS : 1;
    // A term without its entry is one whose entries are all 1.
    localparam int TERM_FRACTION = BINS ? 0 : FRACTION_BITS;
    localparam [(TERM_FRACTION + 2) * 2**LUT_BITS - 1:0] TERM_TABLE =
        BINS ? {2**LUT_BITS{2'd1}} : TABLE;

    wire [VECTOR - 1:0] negative;
    wire [VECTOR * TERM_BITS - 1:0] magnitude;
    wire [VECTOR * ENTRY_BITS - 1:0] entry;

    for (genvar i = 0; i < VECTOR; i++) begin : lane
        lns_term #(
            .A_BITS(A_BITS), .B_BITS(B_BITS), .LOG2_BASE_FACTOR(LOG2_BASE_FACTOR),
            .LUT_BITS(LUT_BITS), .ACC_BITS(ACC_BITS), .HEADROOM(HEADROOM),
            .FRACTION_BITS(TERM_FRACTION), .TABLE(TERM_TABLE)
        ) term (
            .a(a[i * A_BITS +: A_BITS]),
            .b(b[i * B_BITS +: B_BITS]),
            .negative(negative[i]),
            .magnitude(magnitude[i * TERM_BITS +: TERM_BITS]),
            .entry(entry[i * ENTRY_BITS +: ENTRY_BITS])
        );
    end

    // The exact sum of those terms that go to accumulator j.
    function automatic logic signed [SUM_BITS - 1:0] sum_of(
        input int j,
        input logic [VECTOR - 1:0] negative,
        input logic [VECTOR * TERM_BITS - 1:0] magnitude,
        input logic [VECTOR * ENTRY_BITS - 1:0] entry
    );
        logic signed [SUM_BITS - 1:0] term;
        sum_of = 0;
        for (int i = 0; i < VECTOR; i++) begin
            term = magnitude[i * TERM_BITS +: TERM_BITS];
            if (BINS && entry[i * ENTRY_BITS +: ENTRY_BITS] != j) term = 0;
            // -x is ~x + 1: adders alone, of which tools make a tree.
            sum_of = sum_of + (term ^ {SUM_BITS{negative[i]}}) + negative[i];
        end
    endfunction

    for (genvar j = 0; j < ACCUMULATORS; j++) begin : bin
        wire signed [SUM_BITS - 1:0] sum = sum_of(j, negative, magnitude, entry);
        saturating_accumulator #(.SUM_BITS(SUM_BITS), .ACC_BITS(ACC_BITS)) accumulator (
            .clk(clk), .first(first), .sum(sum), .acc(acc[j * ACC_BITS +: ACC_BITS])
        );
    end
endmodule
