%% SPDX-License-Identifier: Apache-2.0
%%
%% The configuration: what is accepted and in which form it comes out, what is refused and how the
%% line reads, and that it all works where it is needed: in a VM whose distribution is starting.

-module(chatter_config_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("common_test/include/ct.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-define(SECRET, "5up3r-s3cret-5up3r-s3cret-5up3r-s3cret").
-define(VM_TIMEOUT_MS, 30000).

all() ->
    [{group, pure}, {group, files}, {group, boot}].

groups() ->
    [
        {pure, [parallel], [
            defaults_are_accepted,
            good_values_come_out_normalised,
            whole_numbers_have_limits,
            bad_values_are_refused_by_name,
            undefined_counts_as_not_set,
            unknown_keys_get_a_suggestion,
            variables_are_read,
            bad_variables_are_refused_by_both_names,
            application_environment_wins,
            keys_must_agree,
            neighbours_say_which_one_is_wrong,
            every_line_is_one_line,
            secrets_stay_secret,
            operations_page_lists_every_key
        ]},
        {files, [], [
            key_file_is_read,
            key_file_that_cannot_be_used,
            key_file_in_place_of_a_key
        ]},
        {boot, [parallel], [
            misspelt_flag_in_a_vm,
            flags_in_a_vm,
            sys_config_in_a_vm,
            variables_in_a_vm,
            flag_that_is_no_term,
            flag_without_value,
            no_chatter_app,
            before_the_file_server
        ]}
    ].

%% The files group sets the environment of the application of this VM.
init_per_group(files, Config) ->
    ok = load_chatter(),
    Config;
init_per_group(_, Config) ->
    Config.

end_per_group(_, _) ->
    ok.

init_per_testcase(_, Config) ->
    Config.

end_per_testcase(_, _) ->
    _ = application:unset_env(chatter, key_file),
    ok.

%%% ---------------------------------------------------------------------------------------------
%%% Pure

%% Given nothing, every key is there with its default; given the defaults, they are accepted.
defaults_are_accepted(_) ->
    Defaults = chatter_config:defaults(),
    ?assertEqual({ok, Defaults}, validate([])),
    ?assertEqual({ok, Defaults}, validate(maps:to_list(Defaults))),
    ?assertEqual(chatter_config:keys(), lists:sort(maps:keys(Defaults))).

%% Given each form a value may be written in, expect the one form the rest of Chatter knows.
good_values_come_out_normalised(_) ->
    [
        ?assertEqual({Key, Written, Expected}, {Key, Written, accepted(Key, Written)})
     || {Key, Forms} <- good(), {Written, Expected} <- Forms
    ],
    ?assertEqual(chatter_config:keys() -- whole_numbers(), lists:sort([K || {K, _} <- good()])).

good() ->
    V6 = {16#2001, 16#db8, 0, 0, 0, 0, 0, 1},
    By = fun(Spec, Metric) -> #{spec => Spec, metric => Metric} end,
    [
        {flows, [{all, all}, {1, 1}]},
        {flow_backpressure, [{suspend, suspend}, {channel, channel}]},
        {on_loss, [{nodedown, nodedown}, {notify, notify}]},
        {my_addr, [
            {any, any}, {"any", any}, {<<"any">>, any},
            {"10.0.0.1", {10, 0, 0, 1}}, {<<"10.0.0.1">>, {10, 0, 0, 1}},
            {'10.0.0.1', {10, 0, 0, 1}}, {{10, 0, 0, 1}, {10, 0, 0, 1}},
            {"0.0.0.0", {0, 0, 0, 0}}, {"::", {0, 0, 0, 0, 0, 0, 0, 0}},
            {"2001:db8::1", V6}, {<<"2001:db8::1">>, V6}, {'2001:db8::1', V6}, {V6, V6}
        ]},
        {my_port, [
            {auto, auto}, {"auto", auto}, {0, 0}, {1, 1}, {29999, 29999}, {65535, 65535},
            {"29999", 29999}, {<<"29999">>, 29999}
        ]},
        {advertise, [
            {auto, auto}, {[], []}, {"10.0.0.1", [{10, 0, 0, 1}]}, {'10.0.0.1', [{10, 0, 0, 1}]},
            {{10, 0, 0, 1}, [{10, 0, 0, 1}]}, {<<"a.example">>, ["a.example"]}, {V6, [V6]},
            {["a.example", 'b_1', <<"10.0.0.1">>, V6], ["a.example", "b_1", {10, 0, 0, 1}, V6]},
            {lists:duplicate(16, a), lists:duplicate(16, "a")}
        ]},
        {key, [
            {?SECRET, <<?SECRET>>}, {<<?SECRET>>, <<?SECRET>>}, {<<0, 255>>, <<0, 255>>},
            {[16#e9], <<"é"/utf8>>}
        ]},
        {key_file, [{F, "/etc/k"} || F <- ["/etc/k", <<"/etc/k">>, '/etc/k']]},
        {encryption, [{true, true}, {false, false}]},
        {unix_sockets, [{true, true}, {false, false}]},
        {links, [{auto, auto}, {static, static}]},
        {multicast, [{true, true}, {false, false}]},
        {multicast_addr, [
            {{224, 1, 1, 1}, {224, 1, 1, 1}}, {"239.255.0.1", {239, 255, 0, 1}},
            {<<"ff02::1234">>, {16#ff02, 0, 0, 0, 0, 0, 0, 16#1234}},
            {'224.0.0.1', {224, 0, 0, 1}}
        ]},
        {multicast_if, [
            {auto, auto}, {all, all}, {eth0, ["eth0"]}, {"eth0", ["eth0"]},
            {["eth0", 'wlan0.1', <<"lo">>, {10, 0, 0, 1}], ["eth0", "wlan0.1", "lo", "10.0.0.1"]},
            {{10, 0, 0, 1}, ["10.0.0.1"]}, {V6, ["2001:db8::1"]},
            {lists:duplicate(64, a), lists:duplicate(64, "a")}
        ]},
        {log_level, [
            {L, L}
         || L <- [emergency, alert, critical, error, warning, notice, info, debug]
        ]},
        {routes, [
            {[], []},
            {[{'d@h', 'v@h'}, {"e@h", <<"v@h">>}], [{'d@h', 'v@h'}, {'e@h', 'v@h'}]}
        ]},
        {neighbours, [
            {[], []},
            {['r@host', {"10.0.0.1", 29999}, {'b@host', 20}], [
                By({name, 'r@host'}, default),
                By({address, {10, 0, 0, 1}, 29999}, default),
                By({name, 'b@host'}, 20)
            ]},
            {["r@host"], [By({name, 'r@host'}, default)]},
            {[<<"r@h.example">>], [By({name, 'r@h.example'}, default)]},
            {[{"r@host", 65535}], [By({name, 'r@host'}, 65535)]},
            {[{'10.0.0.1', 1}], [By({address, {10, 0, 0, 1}, 1}, default)]},
            {[{{10, 0, 0, 1}, 1}], [By({address, {10, 0, 0, 1}, 1}, default)]},
            {[{"2001:db8::1", 65535}], [By({address, V6, 65535}, default)]},
            {[{<<"relay-1.example.">>, 5}], [By({address, "relay-1.example.", 5}, default)]},
            {[{relay, 5}, {relay, 6}], [
                By({address, "relay", 5}, default), By({address, "relay", 6}, default)
            ]}
        ]}
    ].

%% Given the ends of the range in a key's own refusal, they are accepted, and one beyond is not.
whole_numbers_have_limits(_) ->
    [
        begin
            {Min, Max} = range(Key),
            %% The least hold_ms is 2 * hello_ms: see keys_must_agree.
            [?assertEqual({Key, Min}, {Key, accepted(Key, Min)}) || Key =/= hold_ms],
            ?assertEqual({Key, Max}, {Key, accepted(Key, Max)}),
            [
                ?assertMatch({match, _}, re:run(refused(Key, Bad), named(Key)))
             || Bad <- [Min - 1, Max + 1, Min + 0.0, "12", '12', <<"12">>, [], {Min}]
            ]
        end
     || Key <- whole_numbers()
    ].

whole_numbers() ->
    [Key || {Key, Value} <- maps:to_list(chatter_config:defaults()), is_integer(Value)].

%% Given ill-typed values, each is refused and the line names key and value.
bad_values_are_refused_by_name(_) ->
    Terms = [-1, 1.5, {}, {a, b}, #{}, self(), [a | b], [1 | 2], make_ref(), fun() -> ok end],
    [
        ?assertMatch({match, _}, re:run(refused(Key, Value), named(Key)))
     || {Key, Values} <- bad(), Value <- Values ++ Terms
    ],
    ?assertEqual(chatter_config:keys() -- whole_numbers(), lists:sort([K || {K, _} <- bad()])),
    ?assertEqual(
        "chatter: links = mesh is refused: it must be auto or static", refused(links, mesh)
    ),
    ?assertEqual(
        "chatter: workers = 65 is refused: it must be an integer from 1 to 64",
        refused(workers, 65)
    ).

bad() ->
    NotAHost = ["", '', "a b", "10.0.0.256", "1.2.3", "0.0.0.0", "::", "a@b", "-a", "a\n", "a..b"],
    [
        {flows, [0, 2, none, "all"]},
        {flow_backpressure, [none, "suspend", 1]},
        {on_loss, [none, "notify", 1]},
        {my_addr, [
            "", auto, "10.0.0", "10.0.0.256", {10, 0, 0}, {10, 0, 0, 256}, "host.example",
            "fe80::1%eth0", "[::1]", "10.0.0.1:29999", 10, ["10.0.0.1"]
        ]},
        {my_port, [65536, "", "x", "65536", "-1", "29999 ", "0x10", any, <<255>>, [29999]]},
        {advertise,
            [[Host] || Host <- NotAHost] ++
                ["a b", {0, 0, 0, 0}, 29999, [auto | "x"], [["a"], ["b c"]]] ++
                [lists:duplicate(17, a)]},
        {key, ["", <<>>, abc, 12345, [256 bsl 20], [$a | $b], ["nested"], <<1:3>>]},
        {key_file, ["", <<>>, '', 5, <<255>>]},
        {encryption, [yes, "true", 1, <<"true">>]},
        {unix_sockets, [yes, "true", 1]},
        {links, [mesh, "static", true]},
        {routes,
            [[{'d@h', 'd@h'}], [{'d@h', 'v@h'}, {"d@h", 'w@h'}], [{d, 'v@h'}], [{'d@h', 5}],
             ['d@h'], [{'d@h', 'v@h', 1}],
             [{"d" ++ integer_to_list(N) ++ "@h", 'v@h'} || N <- lists:seq(1, 65)]]},
        {multicast, [yes, 0, "false"]},
        {multicast_addr, ["", any, "10.0.0.1", {240, 0, 0, 1}, "2001:db8::1", "ff02::1%eth0", 224]},
        {multicast_if, ["", '', [], "a b", "a\n", ["eth0", 5], {10, 0, 0, 256}, 5, ["a/b"],
                        [[]], lists:duplicate(65, a)]},
        {log_level, [loud, all, none, "info", 7]},
        {neighbours,
            [[{Host, 29999}] || Host <- NotAHost -- ["a@b"]] ++
                ['r@host', "r@host", [r], ['@h'], ['r@'], ['r@h@i'], ["r @h"], [5], [{a, b}]] ++
                [[{'r@h', 0}], [{'r@h', 65536}], [{'r@h', default}], [{"h", 0}], [{"h", 65536}]] ++
                [[{"h", 1, 2}], ['r@h', 'r@h'], ['r@h', {'r@h', 5}], [{"h", 5}, {h, 5}]] ++
                [[lists:duplicate(251, $a) ++ "@host"], [{lists:duplicate(254, $a), 5}]]}
    ].

%% Given `undefined', expect the next source: a template that was not filled in sets nothing.
undefined_counts_as_not_set(_) ->
    [?assertEqual({ok, chatter_config:defaults()}, validate([{K, undefined}]))
     || K <- chatter_config:keys()],
    {ok, Config} = validate([{my_port, undefined}], #{"CHATTER_PORT" => "4"}),
    ?assertMatch(#{my_port := 4}, Config),
    ?assertMatch({error, _}, validate([{helo_ms, undefined}])).

%% Given a misspelt key, expect its name, and the nearest real one if there is one near.
unknown_keys_get_a_suggestion(_) ->
    [
        ?assertEqual(
            lists:flatten(io_lib:format("chatter: unknown key '~ts'~ts", [Wrong, Hint])),
            refused(Wrong, 5)
        )
     || {Wrong, Hint} <- [
            {helo_ms, " (did you mean 'hello_ms'?)"},
            {hold, " (did you mean 'hold_ms'?)"},
            {port, " (did you mean 'my_port'?)"},
            {neighbors, " (did you mean 'neighbours'?)"},
            {keyfile, " (did you mean 'key_file'?)"},
            {multicats, " (did you mean 'multicast'?)"},
            {reconnect_mim_ms, " (did you mean 'reconnect_min_ms'?)"},
            {frobnicate, ""},
            {'', ""},
            {'schlüssel_ding', ""},
            {list_to_atom(lists:duplicate(255, $x)), ""}
        ]
    ],
    ?assertEqual("chatter: a key is an atom, and one that was given is not", refused("links", 5)).

%% Given environment variables alone, as text or bytes, they set their keys.
variables_are_read(_) ->
    {ok, Config} = validate([], #{
        "CHATTER_ADDRESS" => "::1", "CHATTER_PORT" => <<"29998">>, "CHATTER_KEY" => <<?SECRET>>,
        "CHATTER_MULTICAST_ADDRESS" => <<"239.1.1.1">>, "CHATTER_MULTICAST_PORT" => <<"29997">>,
        "CHATTER_MULTICAST_TTL" => "1"
    }),
    ?assertEqual(
        (chatter_config:defaults())#{
            my_addr := {0, 0, 0, 0, 0, 0, 0, 1}, my_port := 29998, key := <<?SECRET>>,
            multicast_addr := {239, 1, 1, 1}, multicast_port := 29997, multicast_ttl := 1
        },
        Config
    ),
    {ok, Words} = validate([], #{"CHATTER_ADDRESS" => "any", "CHATTER_PORT" => "auto"}),
    ?assertEqual(chatter_config:defaults(), Words),
    {ok, Ignored} = validate([], #{"CHATTER_HELLO_MS" => "x"}),
    ?assertEqual(chatter_config:defaults(), Ignored).

%% Given a bad variable (an empty one too), the line names key and variable.
bad_variables_are_refused_by_both_names(_) ->
    [
        begin
            {error, Line} = validate([], #{Variable => Value}),
            Shape = ["^chatter: ", Key, ".* \\(from ", Variable, "\\) is refused: it must be "],
            ?assertMatch({match, _}, re:run(Line, Shape))
        end
     || {Key, Variable, Values} <- [
            {"my_addr", "CHATTER_ADDRESS", ["", "nowhere", <<"1.2.3">>]},
            {"my_port", "CHATTER_PORT", ["", "x", "99999", <<"-5">>]},
            {"multicast_addr", "CHATTER_MULTICAST_ADDRESS", ["", "10.0.0.1", <<"x">>]},
            {"multicast_port", "CHATTER_MULTICAST_PORT", ["", "x", "0", <<"65536">>, "1 "]},
            {"multicast_ttl", "CHATTER_MULTICAST_TTL", ["", "256", <<"-1">>]},
            {"key", "CHATTER_KEY", ["", <<>>]}
        ],
        Value <- Values
    ],
    ?assertEqual(
        {error,
            "chatter: my_port = \"x\" (from CHATTER_PORT) is refused: "
            "it must be auto, or a port from 1 to 65535, or 0 for any free one"},
        validate([], #{"CHATTER_PORT" => <<"x">>})
    ).

%% Given both, the application environment wins and the variable is not even looked at.
application_environment_wins(_) ->
    {ok, Config} = validate([{my_port, 1}, {my_addr, "10.0.0.1"}, {key, "a"}], #{
        "CHATTER_PORT" => "2", "CHATTER_ADDRESS" => "nonsense", "CHATTER_KEY" => "b"
    }),
    ?assertMatch(#{my_port := 1, my_addr := {10, 0, 0, 1}, key := <<"a">>}, Config).

%% Given keys that are fine alone but not together, the line names the two.
keys_must_agree(_) ->
    [
        ?assertEqual({error, "chatter: " ++ Line}, validate(Given))
     || {Given, Line} <- [
            {[{hold_ms, 10}], "hold_ms = 10 is refused: it must be at least 2 * hello_ms (500)"},
            {[{hello_ms, 501}],
                "hold_ms = 1000 is refused: it must be at least 2 * hello_ms (1002)"},
            {[{reconnect_min_ms, 1001}],
                "reconnect_max_ms = 1000 is refused: "
                "it must be at least reconnect_min_ms (1001)"},
            {[{retransmit_memory, 1048576}],
                "retransmit_memory = 1048576 is refused: "
                "it must be at least channel_window (8388608)"},
            {[{max_links, 1}, {neighbours, ['a@b', 'c@d']}],
                "max_links = 1 is refused: it must be at least the number of neighbours (2)"},
            {[{key, ?SECRET}, {key_file, "/x"}],
                "key (or CHATTER_KEY) and key_file are both set: keep one of them"}
        ]
    ],
    ?assertMatch({error, _}, validate([{key_file, "/x"}], #{"CHATTER_KEY" => ?SECRET})),
    ?assertMatch({ok, _}, validate([{hello_ms, 500}])),
    ?assertMatch({ok, _}, validate([{hello_ms, 10}, {hold_ms, 20}])),
    ?assertMatch({error, _}, validate([{hello_ms, 10}, {hold_ms, 19}])),
    ?assertMatch({ok, _}, validate([{reconnect_min_ms, 1000}])),
    ?assertMatch({ok, _}, validate([{retransmit_memory, 8388608}])),
    ?assertMatch({ok, _}, validate([{max_links, 1}, {neighbours, ['a@b']}])).

%% Given one bad neighbour among good ones, the line points at it.
neighbours_say_which_one_is_wrong(_) ->
    Ends = fun(Given, End) ->
        Line = refused(neighbours, Given),
        ?assertEqual({Line, End}, {Line, lists:nthtail(length(Line) - length(End), Line)})
    end,
    Ends(['r@host', {"10.0.0.256", 29999}], "each once; {\"10.0.0.256\",29999} is none of these"),
    Ends(['r@host', {'r@host', 3}], "each once; {r@host,3} is there twice"),
    Ends('r@host', "each once; this is not a list").

%% Given values that are long or hold line ends, the refusal is still one line of bounded length.
every_line_is_one_line(_) ->
    Long = lists:duplicate(100000, $x),
    Nasty = ["a\nb", <<"a\r\nb">>, 'a\nb', Long, list_to_binary(Long), lists:seq(1, 100000)],
    [
        begin
            Line = refused(Key, Value),
            ?assertEqual(nomatch, re:run(Line, "[\r\n]")),
            ?assert(length(Line) < 1000)
        end
     || Key <- chatter_config:keys() -- [key, key_file], Value <- Nasty ++ [Nasty]
    ],
    ?assertEqual(nomatch, re:run(refused('two\nlines', 1), "[\r\n]")).

%% Given a secret in every wrong place, the line never holds a part of it.
secrets_stay_secret(_) ->
    S = ?SECRET,
    A = list_to_atom(S),
    [
        begin
            {error, Line} = validate(Given, Env),
            ?assertEqual({Line, nomatch}, {Line, re:run(Line, "s3cret")})
        end
     || {Given, Env} <- [
            {[{key, A}], #{}},
            {[{key, {S, S}}], #{}},
            {[{key, [S, S]}], #{}},
            {[{key, [S | S]}], #{}},
            {[{key_file, {S}}], #{}},
            {[{key, S}, {key_file, S}], #{}},
            {[{key_file, "/x"}], #{"CHATTER_KEY" => S}},
            {[{key, S}, {hold_ms, 10}], #{}},
            {[{key, S}, {my_port, x}], #{}},
            {[{keye, S}], #{}},
            {[{cookie, S}], #{}},
            {[{S, S}], #{}}
        ]
    ].

%% Given docs/operations.md, each key has one row with its default and the range that is checked.
operations_page_lists_every_key(Config) ->
    Rows = [
        Row
     || Line <- string:split(operations_page(Config), "\n", all),
        [_, Row] <- [re:split(Line, "^\\| (?=`[a-z_]+`)", [unicode, {return, list}])]
    ],
    Described = [{row_key(Row), Row} || Row <- Rows, lists:member(row_key(Row), settable())],
    ?assertEqual(settable(), lists:sort([Key || {Key, _} <- Described])),
    [
        ?assertMatch({Key, Text, {match, _}}, {Key, Text, re:run(Row, Text, [unicode])})
     || {Name, Row} <- Described, Key <- [list_to_atom(Name)], Text <- in_row(Key)
    ].

settable() -> [atom_to_list(Key) || Key <- chatter_config:keys()].

row_key(Row) -> hd(string:split(tl(Row), "`")).

in_row(Key) ->
    Default = maps:get(Key, chatter_config:defaults()),
    case is_integer(Default) of
        true ->
            {Min, Max} = range(Key),
            [io_lib:format("\\b~b\\b", [Default]), io_lib:format("~b to ~b", [Min, Max])];
        false when Default =:= []; Default =:= undefined ->
            [];
        false ->
            [io_lib:format("`~tp`", [Default])]
    end.

%%% ---------------------------------------------------------------------------------------------
%%% Files

%% Given key_file, its content less one line end becomes the key.
key_file_is_read(Config) ->
    [
        begin
            File = key_file(Config, Content),
            application:set_env(chatter, key_file, File),
            {ok, Loaded} = chatter_config:load(),
            ?assertMatch(#{key := Key, key_file := File}, Loaded)
        end
     || {Content, Key} <- [
            {<<?SECRET>>, <<?SECRET>>},
            {<<?SECRET, "\n">>, <<?SECRET>>},
            {<<?SECRET, "\r\n">>, <<?SECRET>>},
            {<<?SECRET, " \n\n">>, <<?SECRET, " \n">>},
            {<<0, 10, 255>>, <<0, 10, 255>>},
            {binary:copy(<<"k">>, 4096), binary:copy(<<"k">>, 4096)}
        ]
    ].

%% Given a key_file that is missing, empty, too large, a directory or forbidden, the line says so.
key_file_that_cannot_be_used(Config) ->
    Dir = ?config(priv_dir, Config),
    Missing = filename:join(Dir, "missing"),
    Forbidden = key_file(Config, <<?SECRET>>),
    ok = file:change_mode(Forbidden, 8#000),
    %% A user who may read everything is told nothing of modes.
    Privileged = element(1, file:read_file(Forbidden)) =:= ok,
    [
        begin
            application:set_env(chatter, key_file, File),
            {error, Line} = chatter_config:load(),
            Expected = ["chatter: key_file = \"", File, "\" cannot be read: ", Why],
            ?assertEqual(lists:concat(Expected), Line)
        end
     || {File, Why} <- [
            {Missing, "no such file or directory"},
            {filename:join(Missing, "below"), "no such file or directory"},
            {string:trim(Dir, trailing, "/"), "not a regular file"},
            {"/dev/null", "not a regular file"},
            {key_file(Config, <<>>), "it is empty"},
            {key_file(Config, <<"\n">>), "it is empty"},
            {key_file(Config, binary:copy(<<"k">>, 4097)), "more than 4096 bytes"}
        ] ++ [{Forbidden, "permission denied"} || not Privileged]
    ],
    [ct:comment("runs as a privileged user: 'permission denied' not tried") || Privileged].

%% Given the secret itself as key_file, the line does not show it.
key_file_in_place_of_a_key(_) ->
    application:set_env(chatter, key_file, ?SECRET),
    ?assertEqual(
        {error, "chatter: key_file cannot be read: no such file or directory"},
        chatter_config:load()
    ).

%%% ---------------------------------------------------------------------------------------------
%%% In a VM of its own

%% Given a misspelt flag, load/0 in a fresh VM returns the line.
misspelt_flag_in_a_vm(_) ->
    ?assertEqual(
        "chatter: unknown key 'helo_ms' (did you mean 'hello_ms'?)",
        load_in_vm(["-chatter", "helo_ms", "5"], [])
    ).

%% Given flags as an operator types them, they arrive.
flags_in_a_vm(_) ->
    Flags = [
        "-chatter", "my_port", "29999",
        "-chatter", "neighbours", "['r@host',{\"10.0.0.1\",29999},{'b@host',20}]",
        "-chatter", "links", "static", "hello_ms", "100"
    ],
    #{my_port := 29999, links := static, hello_ms := 100, neighbours := Neighbours} =
        load_in_vm(Flags, []),
    ?assertEqual(accepted(neighbours, ['r@host', {"10.0.0.1", 29999}, {'b@host', 20}]), Neighbours).

%% Given sys.config, it is read; a flag wins over it.
sys_config_in_a_vm(Config) ->
    File = filename:join(?config(priv_dir, Config), "sys.config"),
    Terms = [{chatter, [{my_addr, "10.0.0.1"}, {hello_ms, 200}, {hold_ms, 300}]}],
    ok = file:write_file(File, io_lib:format("~p.~n", [Terms])),
    ?assertEqual(
        "chatter: hold_ms = 300 is refused: it must be at least 2 * hello_ms (400)",
        load_in_vm(["-config", File], [])
    ),
    ?assertMatch(
        #{my_addr := {10, 0, 0, 1}, hello_ms := 100, hold_ms := 300},
        load_in_vm(["-config", File, "-chatter", "hello_ms", "100"], [])
    ).

%% Given variables, they are read as UTF-8 in any locale; a flag wins.
variables_in_a_vm(_) ->
    Key = <<"schlüssel"/utf8>>,
    %% What becomes these bytes on the way out of this VM.
    Text = unicode:characters_to_list(Key, file:native_name_encoding()),
    Env = [{"CHATTER_PORT", "29990"}, {"CHATTER_KEY", Text}],
    ?assertMatch(#{my_port := 29990, key := Key}, load_in_vm(["+fnu"], Env)),
    ?assertMatch(#{my_port := 29990, key := Key}, load_in_vm(["+fnl"], Env)),
    ?assertMatch(#{my_port := 29991}, load_in_vm(["-chatter", "my_port", "29991"], Env)).

%% Given a flag that is not an Erlang term, the line names the key and tells how to write it.
flag_that_is_no_term(_) ->
    How = " is not an Erlang term: write text as '\"text\"'",
    Line = fun(Flags) -> load_in_vm(["-chatter" | Flags], []) end,
    ?assertEqual("chatter: the value of my_addr" ++ How, Line(["my_addr", "10.0.0.1"])),
    ?assertEqual("chatter: the value of key" ++ How, Line(["key", "0 " ?SECRET])),
    ?assertEqual("chatter: the value of my_addr" ++ How, Line(["my_addr", "\"10.0.0.1"])),
    ?assertEqual("chatter: a word after -chatter" ++ How, Line(["1a", "5"])).

%% Given a flag whose value was forgotten, which the VM would drop in silence, it is refused.
flag_without_value(_) ->
    ?assertEqual(
        "chatter: my_port has no value on the command line",
        load_in_vm(["-chatter", "my_port", "-chatter", "hello_ms", "100"], [])
    ),
    ?assertEqual(
        "chatter: the words after -chatter are not pairs of key and value",
        load_in_vm(["-chatter", "my_port", "5", "\"" ?SECRET "\""], [])
    ).

%% Given a code path without chatter.app, the line says what to add.
no_chatter_app(Config) ->
    Dir = ?config(priv_dir, Config),
    {ok, _} = file:copy(beam(), filename:join(Dir, "chatter_config.beam")),
    ?assertEqual(
        "chatter: chatter.app is not found: add the ebin directory of chatter with -pa",
        run_load(["-pa", Dir], [])
    ).

%% Given a distribution that is starting (no file server yet), load/0 reads flags and key file.
before_the_file_server(Config) ->
    Dir = filename:join(?config(priv_dir, Config), "early"),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Source = filename:join(Dir, "early_dist.erl"),
    ok = file:write_file(Source,
        "-module(early_dist).\n"
        "-export([childspecs/0]).\n"
        "childspecs() ->\n"
        "    undefined = whereis(file_server_2),\n"
        "    chatter_config_SUITE:print(chatter_config:load()).\n"),
    {ok, early_dist} = compile:file(Source, [{outdir, Dir}]),
    File = key_file(Config, <<?SECRET, "\n">>),
    Start = ["-pa", Dir, "-proto_dist", "early", "-no_epmd", "-sname", "chatter_config_early"],
    KeyFlag = ["-chatter", "key_file", "\"" ++ File ++ "\""],
    Key = <<?SECRET>>,
    ?assertMatch(
        #{key := Key, key_file := File, my_port := 7},
        run(paths() ++ Start ++ KeyFlag ++ ["-chatter", "my_port", "7"], [])
    ),
    ?assertEqual(
        "chatter: unknown key 'helo_ms' (did you mean 'hello_ms'?)",
        run(paths() ++ Start ++ ["-chatter", "helo_ms", "5"], [])
    ).

%%% ---------------------------------------------------------------------------------------------
%%% Helpers

validate(Given) -> validate(Given, #{}).

validate(Given, Variables) ->
    chatter_config:validate(Given, fun(Name) -> maps:get(Name, Variables, false) end).

%% The value of Key when it is written so, other keys made to agree with it.
accepted(Key, Written) ->
    case validate([{Key, Written} | agreeing(Key, Written)]) of
        {ok, #{Key := Value}} -> Value;
        {error, Line} -> {error, lists:flatten(Line)}
    end.

agreeing(hello_ms, _) -> [{hold_ms, 600000}];
agreeing(reconnect_min_ms, _) -> [{reconnect_max_ms, 3600000}];
agreeing(reconnect_max_ms, _) -> [{reconnect_min_ms, 10}];
agreeing(channel_window, _) -> [{retransmit_memory, 1 bsl 40}];
agreeing(retransmit_memory, _) -> [{channel_window, 65536}];
agreeing(_, _) -> [].

refused(Key, Value) ->
    {error, Line} = validate([{Key, Value}]),
    lists:flatten(Line).

named(Key) ->
    Shown = [" = .*" || not lists:member(Key, [key, key_file])],
    ["^chatter: ", atom_to_list(Key), Shown, " is refused: it must be "].

%% What the key itself says about its range.
range(Key) ->
    {match, [Min, Max]} = re:run(
        refused(Key, none), "an integer from (\\d+) to (\\d+)$", [{capture, all_but_first, list}]
    ),
    {list_to_integer(Min), list_to_integer(Max)}.

load_chatter() ->
    case application:load(chatter) of
        ok -> ok;
        {error, {already_loaded, chatter}} -> ok
    end.

key_file(Config, Content) ->
    Name = "key-" ++ integer_to_list(erlang:unique_integer([positive])),
    File = filename:join(?config(priv_dir, Config), Name),
    ok = file:write_file(File, Content),
    File.

%% The page is looked for upwards: rebar3 runs a copy of this suite under _build.
operations_page(Config) ->
    operations_page_above(?config(data_dir, Config)).

operations_page_above(Dir) ->
    case {file:read_file(filename:join([Dir, "docs", "operations.md"])), filename:dirname(Dir)} of
        {{ok, Page}, _} -> unicode:characters_to_list(Page);
        {_, Dir} -> ct:fail("docs/operations.md not found");
        {_, Above} -> operations_page_above(Above)
    end.

load_in_vm(Flags, Env) -> run_load(paths() ++ Flags, Env).

run_load(Flags, Env) ->
    Print = "chatter_config_SUITE:print(chatter_config:load()).",
    run(["-pa", filename:dirname(code:which(?MODULE)) | Flags] ++ ["-eval", Print], Env).

paths() ->
    ["-pa", filename:dirname(beam()), filename:dirname(code:which(?MODULE))].

%% code:which/1 does not tell where a cover-compiled module comes from.
beam() -> code:where_is_file("chatter_config.beam").

%% Called in the VM under test, perhaps before there is any io: one marked line, then the end.
print(Result) ->
    Printable =
        case Result of
            {ok, Config} -> Config;
            {error, Line} -> lists:flatten(Line)
        end,
    Encoded = base64:encode_to_string(term_to_binary(Printable)),
    erlang:display_string("<<" ++ Encoded ++ ">>\n"),
    erlang:halt(0).

run(Flags, Env) ->
    Clean = [{"CHATTER_" ++ V, false} || V <- ["ADDRESS", "PORT", "KEY"]],
    Quiet = [{"ERL_" ++ V, false} || V <- ["FLAGS", "AFLAGS", "ZFLAGS", "LIBS"]],
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Port = open_port({spawn_executable, Erl}, [
        {args, ["-noinput", "-noshell" | Flags]},
        {env, lists:ukeymerge(1, lists:sort(Env), lists:sort(Clean ++ Quiet))},
        exit_status, stderr_to_stdout, binary
    ]),
    Output = collect(Port, <<>>),
    %% The line is all that is said: no report beside it, and no secret.
    ?assertEqual({Output, nomatch}, {Output, re:run(Output, "REPORT|s3cret")}),
    case re:run(Output, "<<([A-Za-z0-9+/=]+)>>", [{capture, all_but_first, binary}]) of
        {match, [Encoded]} -> binary_to_term(base64:decode(Encoded));
        nomatch -> ct:fail({no_result, Output})
    end.

collect(Port, Output) ->
    receive
        {Port, {data, Data}} -> collect(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, _}} -> Output
    after ?VM_TIMEOUT_MS ->
        port_close(Port),
        ct:fail({no_end, Output})
    end.
