%% The wire format as its document says it: test/wire/chatter_wire.py, which was written from
%% docs/wire-format.md and shares no code with Chatter, reads the golden bytes, hears what real
%% nodes send by multicast, and sends them something.
-module(chatter_wire_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_cluster, [wait_until/2]).
-import(chatter_work, [on/2]).

-define(TIMEOUT_MS, 20000).
-define(KEY, "6f1b9e02d7c45a38f06d21b7e9834c5a1d70fe92b64385ca0e7f13d82b96a45c").

suite() -> [{timetrap, {minutes, 2}}].

all() -> [golden, hears_and_sends].

init_per_suite(Config) ->
    Test = "from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV\n"
        "AESGCMSIV(bytes(32))",
    case chatter_cluster:run(python(), ["-c", Test], ?TIMEOUT_MS, #{env => env()}) of
        {0, _} -> Config;
        {_, Output} ->
            {skip, "python3 has no module cryptography with AES-GCM-SIV, which .ci/setup gets "
             "with pip: " ++ string:trim(binary_to_list(Output))}
    end.

end_per_suite(_Config) -> ok.

init_per_testcase(_, Config) ->
    ok = chatter_cluster:new(),
    Config.

end_per_testcase(_, _Config) ->
    ok = chatter_cluster:stop_all(),
    _ = [ok = chatter_lab:close(Lab) || Lab <- [get(lab)], Lab =/= undefined],
    ok.

%%% ------------------------------------------------------------------------------------

%% Given the document, expect each of its golden bytes to be read and written again.
golden(_Config) ->
    Document = filename:join([chatter_cluster:root(), "docs", "wire-format.md"]),
    {0, Output} = chatter_cluster:run(python(), [script(), "golden", Document], ?TIMEOUT_MS,
                                      #{env => env()}),
    ?assertEqual(["bcast", "beacon", "cast", "cast-hello", "datagram", "nak"],
                 lists:sort([Name || "golden " ++ Name <- string:lexemes(
                                                            binary_to_list(Output), "\n")])).

%% Given three nodes that broadcast a term, one that is worth compressing and one with NetIDs,
%% expect the program to decode them; given one that it sends, expect it at the nodes it is for.
hears_and_sends(Config) ->
    case chatter_lab:available() of
        ok -> converse();
        Skip -> Config, Skip
    end.

converse() ->
    Lab = chatter_lab:open(#{nodes => 4, network => bridge}),
    _ = put(lab, Lab),
    Opts = #{chatter => [{multicast, true}, {key, ?KEY}, {beacon_ms, 1000}]},
    Peers = [A, B, C] = [chatter_lab:start(Lab, I, Opts) || I <- [1, 2, 3]],
    chatter_cluster:await_routes(Peers, ?TIMEOUT_MS),
    wait_until(fun() -> maps:get(proofs, figures(A)) =:= 2 end, ?TIMEOUT_MS),
    [collect(P, hello) || P <- Peers],
    Names = [atom_to_list(N) || #{node := N} <- [B, C]],
    Program = open(Lab, 4, ["hello", "from afar" | Names]),
    Before = await(Program, ["beacon n" ++ N ++ "@10\\.77\\.0\\." ++ N ++ " 29999"
                             || N <- ["1", "2", "3"]]),
    Codec = #{type => clock, extract_netids => fun({clock, Ids, _}) -> Ids end,
              encode_with => fun({clock, Ids, N}, Map) ->
                                     Places = << <<(maps:get(I, Map))>> || I <- Ids >>,
                                     <<N:32, Places/binary>>
                             end},
    Id = {net_id, {10, 1, 2, 3}, 29999},
    on(A, fun() ->
                  ok = chatter:add_handler(Codec),
                  [ok = chatter:broadcast(all, Msg)
                   || Msg <- [{greeting, [1, 2000], <<"hello">>},
                              {greeting, binary:copy(<<"abcd">>, 200)}, {clock, [Id], 77}]]
          end),
    Origin = "cast n1@10\\.77\\.0\\.1 [0-9]+ to n[23]@10\\.77\\.0\\.[23] ",
    Greeting = "greeting plain \\[\\] \\{greeting,\\[1,2000\\],<<\"hello\">>\\}",
    Heard = await(Program, [Origin ++ Greeting,
                            Origin ++ "greeting lz4 \\[\\] \\{greeting,<<\"(abcd){200}\">>\\}",
                            Origin ++ "clock plain \\[\\('10\\.1\\.2\\.3', 29999\\)\\] "
                            "0000004d00"]),
    Lines = Before ++ Heard,
    ct:log("~s", [lists:join("\n", Lines)]),
    [Sender] = [list_to_binary(Hex) || "sent as " ++ Hex <- Lines],
    [wait_until(fun() -> seen(P) =:= [{Sender, {hello, <<"from afar">>}}] orelse seen(P) end,
                ?TIMEOUT_MS) || P <- [B, C]],
    ?assertEqual([], seen(A)),
    [?assert(maps:get(duplicates, figures(P)) >= 2) || P <- [B, C]],
    ?assertEqual([], [Line || "dropped" ++ _ = Line <- Lines]).

%%% ------------------------------------------------------------------------------------
%%% Help

python() -> os:find_executable("python3").

%% What .ci/setup has got with pip.
env() -> [{"PYTHONPATH", filename:join([chatter_cluster:root(), "_build", "python"])}].

script() -> filename:join([chatter_cluster:root(), "test", "wire", "chatter_wire.py"]).

%% The program at place I, until this process ends.
open(Lab, I, Saying) ->
    {Nsenter, [Net | _]} = chatter_lab:exec(Lab, I),
    Args = [Net, python(), "-u", script(), "listen", "224.1.1.1", "29999", chatter_lab:address(I)
            | Saying],
    Port = open_port({spawn_executable, Nsenter},
                     [{args, Args}, {env, env()}, {line, 65536}, stderr_to_stdout, exit_status]),
    true = port_command(Port, ?KEY "\n"),
    Port.

%% All lines until each pattern has been matched.
await(Port, Patterns) ->
    await(Port, Patterns, [], erlang:monotonic_time(millisecond) + ?TIMEOUT_MS).

await(_, [], Lines, _) -> lists:reverse(Lines);
await(Port, Patterns, Lines, Until) ->
    receive
        {Port, {data, {eol, Line}}} ->
            Left = [P || P <- Patterns, re:run(Line, P, [{capture, none}]) =:= nomatch],
            await(Port, Left, [Line | Lines], Until);
        {Port, {exit_status, Code}} -> error({program, Code, lists:reverse(Lines)})
    after max(0, Until - erlang:monotonic_time(millisecond)) ->
            error({missing, Patterns, lists:reverse(Lines)})
    end.

figures(Peer) -> on(Peer, fun() -> maps:get(broadcast, chatter:info()) end).

collect(Peer, Type) ->
    on(Peer, fun() ->
                     Self = self(),
                     spawn(fun() ->
                                   ok = chatter:subscribe(Type, 100),
                                   true = register(collector, self()),
                                   Self ! collecting,
                                   collecting([])
                           end),
                     receive collecting -> ok end
             end).

collecting(Seen) ->
    receive
        {chatter_broadcast, From, Msg} -> collecting([{From, Msg} | Seen]);
        {seen, To} -> To ! {seen, lists:reverse(Seen)}, collecting(Seen)
    end.

seen(Peer) ->
    on(Peer, fun() -> collector ! {seen, self()}, receive {seen, Seen} -> Seen end end).
