// Runs a product of matrices through the array and compares every accumulator.
//
// product.svh (written by product.py from product.json) states sizes, formats, the datapath and
// its table; a.hex [M, K], b.hex [K, N] and acc.hex [M, N] (with bins [M, N, 2^m]) hold one word
// a line, row-major. Ends with $fatal where a word differs. +folder=DIR says where they are.
module testbench;
    `include "product.svh"
    localparam int ACCUMULATORS = BINS ? 2**LUT_BITS : 1;
    localparam int COLUMNS = 4;
    localparam int VECTORS = (K + VECTOR - 1) / VECTOR;

    // Words as files have them, sign-extended or not: the low bits count.
    logic [15:0] a_codes[0:M * K - 1];
    logic [15:0] b_codes[0:K * N - 1];
    logic [31:0] expected[0:M * N * ACCUMULATORS - 1];

    logic clk = 0;
    logic first;
    logic [VECTOR * A_BITS - 1:0] a;
    logic [COLUMNS * VECTOR * B_BITS - 1:0] b;
    wire [COLUMNS * ACCUMULATORS * ACC_BITS - 1:0] acc;

`ifdef NETLIST  // what yosys made of the array; its parameters are fixed
    lns_array array (.clk(clk), .first(first), .a(a), .b(b), .acc(acc));
`else
    lns_array #(
        .A_BITS(A_BITS), .B_BITS(B_BITS), .LOG2_BASE_FACTOR(LOG2_BASE_FACTOR),
        .LUT_BITS(LUT_BITS), .ACC_BITS(ACC_BITS), .HEADROOM(HEADROOM),
        .FRACTION_BITS(FRACTION_BITS), .TABLE(TABLE), .VECTOR(VECTOR), .BINS(BINS),
        .COLUMNS(COLUMNS)
    ) array (.clk(clk), .first(first), .a(a), .b(b), .acc(acc));
`endif

    int differing = 0;
    string folder;

    // Vector v of row m and of COLUMNS columns from n on; zero codes beyond the edges.
    task automatic feed(int m, int n, int v);
        first = v == 0;
        a = 0;
        b = 0;
        for (int i = 0; i < VECTOR && v * VECTOR + i < K; i++) begin
            a[i * A_BITS +: A_BITS] = a_codes[m * K + v * VECTOR + i];
            for (int j = 0; j < COLUMNS && n + j < N; j++)
                b[(j * VECTOR + i) * B_BITS +: B_BITS] = b_codes[(v * VECTOR + i) * N + n + j];
        end
        #1 clk = 1;
        #1 clk = 0;
    endtask

    task automatic compare(int m, int n);
        logic [ACC_BITS - 1:0] got, want;
        for (int j = 0; j < COLUMNS && n + j < N; j++)
            for (int h = 0; h < ACCUMULATORS; h++) begin
                got = acc[(j * ACCUMULATORS + h) * ACC_BITS +: ACC_BITS];
                want = expected[(m * N + n + j) * ACCUMULATORS + h];
                if (got !== want) begin
                    differing++;
                    if (differing <= 10)
                        $display("differs: row %0d, column %0d, bin %0d: got %h, expected %h",
                                 m, n + j, h, got, want);
                end
            end
    endtask

    initial begin
        if (!$value$plusargs("folder=%s", folder)) folder = ".";
        $readmemh({folder, "/a.hex"}, a_codes);
        $readmemh({folder, "/b.hex"}, b_codes);
        $readmemh({folder, "/acc.hex"}, expected);
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n += COLUMNS) begin
                for (int v = 0; v < VECTORS; v++) feed(m, n, v);
                compare(m, n);
            end
        $display("%0d of %0d words differ", differing, M * N * ACCUMULATORS);
        if (differing != 0) $fatal(1, "the accumulators are not those expected");
        $finish;
    end
endmodule
